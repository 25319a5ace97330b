"""Tells which torch releases some Python code runs on, and where it breaks, without running it and without torch."""
