"""Checkpoints: saving, stopping and an exact restart."""
