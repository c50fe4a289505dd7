"""What the callbacks of a run share."""
