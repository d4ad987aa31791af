"""Checkpoints: read strictly, told apart by origin, described by model cards, uploaded whole."""
