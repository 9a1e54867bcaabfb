"""The report on runs: what their files are, what is said of them, and the page."""
