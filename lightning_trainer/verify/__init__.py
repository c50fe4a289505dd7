"""Proves that restarts are exact."""
