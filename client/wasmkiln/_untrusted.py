"""Text and durations that came from a daemon or a file, made fit to be shown.

A daemon may be broken or hostile: a text may hold control characters that steer a terminal,
and a Duration may be outside of the range in which protobuf's own conversions work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

_MAX_LINE = 2_000
_MAX_QUOTED = 200
# The range of google.protobuf.Duration: 10,000 years.
_MAX_SECONDS = 315_576_000_000
_NANOS = 10**9


def one_line(text: str, limit: int = _MAX_LINE) -> str:
    """Return the text as one printable line of about `limit` characters at most.

    An engine's message has line breaks, and names that a module's author chose; a daemon can
    send megabytes. What is cut off is counted.
    """
    head = text[: 4 * limit]
    joined = " ".join(head.split())
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
    if len(clean) <= limit and len(head) == len(text):
        return clean
    return f"{clean[:limit]}… (cut, of {len(text):,} characters)"


def quoted(text: str) -> str:
    """Return a name or value as part of a sentence: one line of about 200 characters at most."""
    return one_line(text, _MAX_QUOTED)


def seconds(duration: Duration) -> float:
    """Return a Duration in seconds. Raise nothing, whatever its fields hold."""
    return duration.seconds + duration.nanos / _NANOS


def is_valid(duration: Duration) -> bool:
    """Return whether protobuf's own conversions accept the Duration."""
    whole, nanos = duration.seconds, duration.nanos
    return abs(whole) <= _MAX_SECONDS and abs(nanos) < _NANOS and whole * nanos >= 0
