"""The commands that look at sessions or begin a project; imports no torch."""
