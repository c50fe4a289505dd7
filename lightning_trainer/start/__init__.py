"""The way from the command line to a run."""
