"""Engines: installed side by side, each served by workers in its own interpreter."""
