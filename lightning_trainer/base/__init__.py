"""What a project extends."""
