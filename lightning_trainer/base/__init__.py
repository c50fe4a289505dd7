"""The classes that a project extends."""
