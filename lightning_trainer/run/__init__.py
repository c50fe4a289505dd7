"""State and decisions that the callbacks of a run share."""
