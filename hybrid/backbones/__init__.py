"""Main CNNs."""
