"""What a session folder is and how it is read; imports no torch."""
