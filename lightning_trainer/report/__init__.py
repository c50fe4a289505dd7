"""The output of a run: log, results, numbers and curves."""
