"""Optical flow: frame pairs to flow, and flow to motion images and back."""
