"""Masks for others."""
