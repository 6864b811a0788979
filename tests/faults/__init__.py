"""Faults of Redis and of object stores, under load: what callers notice."""
