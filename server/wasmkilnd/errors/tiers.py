"""What a cache tier raises. Never reaches a caller."""

from __future__ import annotations


class TierUnavailable(Exception):  # noqa: N818 - a state of the tier, and no fault of the caller's
    """A cache tier could not do what the daemon asked of it."""


class DoesNotFit(TierUnavailable):
    """A value is larger than all that the tier may hold; the tier works."""


class PartUnavailable(TierUnavailable):
    """One part of a tier is down, and the key lies there; the rest of the tier answers."""


class WrongType(TierUnavailable):
    """A key in Redis holds a type of value that no daemon writes."""
