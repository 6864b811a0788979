"""The part that runs inside an engine's own interpreter, CPython 3.10 or newer.

It imports the standard library and its one engine, and nothing of the daemon's.
"""
