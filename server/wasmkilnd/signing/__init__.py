"""Signing keys: made at first start, kept with safe permissions, and several trusted at once."""
