"""The one exception of this room."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818
    """The store cannot serve this call: there is no such entry, or something is wrong with it."""
