"""Learning rules, one a file: each gives the chances of LTP and LTD (paper, Eq. 5)."""
