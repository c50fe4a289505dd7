"""Looks at sessions, begins a project; imports no torch."""
