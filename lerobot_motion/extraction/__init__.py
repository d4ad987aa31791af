"""Extraction of motion targets: a LeRobotDataset in, a latent store out."""
