"""A Duration in seconds, whatever a daemon put into it.

protobuf's own conversions raise for what is outside of a Duration's range; a daemon can send
that all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

# Of google.protobuf.Duration: 10,000 years.
_MAX_SECONDS = 315_576_000_000
_NANOS = 10**9


def seconds(duration: Duration) -> float:
    """Return the seconds. Raise nothing."""
    return duration.seconds + duration.nanos / _NANOS


def is_valid(duration: Duration) -> bool:
    """Return whether protobuf's conversions take it."""
    whole, nanos = duration.seconds, duration.nanos
    return abs(whole) <= _MAX_SECONDS and abs(nanos) < _NANOS and whole * nanos >= 0
