"""The failure of a source of modules."""

from __future__ import annotations


class SourceUnusable(OSError):  # noqa: N818 - named like the errors of the client
    """A registry, a layout, a list or a file cannot be read, or holds other bytes than it says."""
