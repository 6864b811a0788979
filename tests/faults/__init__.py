"""Redis made sick in every way, under load: what callers notice of it."""
