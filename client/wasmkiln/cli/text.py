"""Numbers and enums as people read them, whatever value a daemon sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from wasmkiln._untrusted import one_line as one_line  # wasmkilnd's commands import it from here
from wasmkiln._untrusted import seconds

if TYPE_CHECKING:
    from typing import Any

    from google.protobuf.duration_pb2 import Duration

_MOST_BYTES = 2.0**63
_YEAR_S = 365 * 24 * 3600


def word(enum: Any, value: int) -> str:
    """Return an enum's value as a word, such as "core module"; an unknown one as "kind 7"."""
    prefix = enum.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    known = enum.DESCRIPTOR.values_by_number.get(value)
    name = known.name.removeprefix(prefix) if known is not None else f"{prefix}{value}"
    return name.replace("_", " ").lower()


def size(count_bytes: int) -> str:
    """Return a number of bytes as, for example, "2.5 MiB"."""
    if count_bytes < 1024:
        return f"{count_bytes} B"
    power = min(3, (count_bytes.bit_length() - 1) // 10)
    return f"{count_bytes / 1024**power:.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def share(part: float) -> str:
    """Return, for example, "75.0%"; a number outside of 0 to 1 as it is."""
    return f"{part:.1%}" if 0 <= part <= 1 else f"{part:g}"


def amount(number: float, of: str) -> str:
    """Return how much of a quota: bytes as a size, others as they are."""
    if "bytes" in of and 0 <= number < _MOST_BYTES:
        return size(int(number))
    return f"{round(number, 2):.6g}"


def time(duration: Duration) -> str:
    """Return a Duration as `elapsed` shows it."""
    return elapsed(seconds(duration))


def timestamp(when: Timestamp) -> str:
    """Return a time as, for example, "2026-11-27 23:04:57Z"; "@" and its seconds out of range."""
    try:
        text: str = Timestamp(seconds=when.seconds).ToJsonString()
    except ValueError:
        return f"@{when.seconds}"
    return text.replace("T", " ")


def elapsed(duration_s: float) -> str:
    """Return seconds as, for example, "0.42 ms", "12 ms", "1.30 s", "2 h 5 min"; 0 as "-"."""
    if duration_s == 0:
        return "-"
    if duration_s < 0:
        return f"-{elapsed(-duration_s)}"
    if duration_s < 0.010:
        return f"{duration_s * 1e3:.2f} ms"
    if duration_s < 1:
        return f"{duration_s * 1e3:.0f} ms"
    if duration_s < 120:
        return f"{duration_s:.2f} s"
    if duration_s >= _YEAR_S:
        return f"{duration_s / _YEAR_S:.3g} years"
    hours, minutes = divmod(round(duration_s / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
