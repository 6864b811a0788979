"""What a server says that does not speak Redis's protocol."""

from __future__ import annotations

_PART = 64 * 1024

LIES: dict[str, tuple[bytes, bytes]] = {
    # What it begins its answer with, and what it goes on with for ever.
    "a length that is no number": (b"$1_000_000_000\r\n", b"x" * _PART),
    "a line without end": (b"+", b"x" * _PART),
    "nothing but bytes": (b"", b"\x00" * _PART),
}
