"""Finds well-known silent mistakes of a project before it trains."""
