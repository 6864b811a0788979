"""What a cache tier raises. Never reaches a caller."""

from __future__ import annotations


class TierUnavailable(Exception):  # noqa: N818 - a state of the tier, and no fault of the caller's
    """A cache tier did not do what was asked of it. Never reaches a caller."""


class PartUnavailable(TierUnavailable):
    """What was asked concerns a part of a tier that is down; the rest of it answers."""


class WrongType(TierUnavailable):
    """A key holds another type of value than ours, which nobody of us put there."""
