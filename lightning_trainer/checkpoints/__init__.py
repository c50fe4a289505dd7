"""Nothing is lost, and going on is exact."""
