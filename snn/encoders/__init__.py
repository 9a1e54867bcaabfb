"""Encoders, one a file: images to spike trains (paper, 4.2 and 4.3)."""
