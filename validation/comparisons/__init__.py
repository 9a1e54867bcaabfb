"""What the three commands compare, one subject a file: settings, records of results, and the comparisons."""
