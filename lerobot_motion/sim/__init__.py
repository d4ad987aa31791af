"""Simulated robots and scripted experts that produce demonstrations to learn from."""
