"""Joint motion learning for LeRobot's pi0-style policies (arXiv 2512.18007)."""

__version__ = "0.1.0"
