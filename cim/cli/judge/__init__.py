"""Masks, numbers and pictures of trained networks."""
