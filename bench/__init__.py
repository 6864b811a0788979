"""Measures the daemon beside what it is to be compared with: ``python -m bench``."""
