"""Faults of Redis of every kind, under load: what callers notice."""
