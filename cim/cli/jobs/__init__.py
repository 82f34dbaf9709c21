"""Whole jobs: many commands in a row."""
