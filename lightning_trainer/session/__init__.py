"""The session folder: its files, and the readers and writers of them; imports no torch."""
