"""For projects with images."""
