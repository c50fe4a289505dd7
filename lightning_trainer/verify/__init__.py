"""Proves that a restart is exact."""
