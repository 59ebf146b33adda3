"""Continued pre-training: one loop, read top to bottom in `loop.py`."""
