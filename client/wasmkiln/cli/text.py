"""Numbers and messages as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration


def one_line(text: str) -> str:
    """One printable line: an engine's message holds line breaks, and names that a module's
    author chose, which must not steer a terminal."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def size(count_bytes: int) -> str:
    """For example "2.5 MiB"."""
    if count_bytes < 1024:
        return f"{count_bytes} B"
    power = min(3, (count_bytes.bit_length() - 1) // 10)
    return f"{count_bytes / 1024**power:.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def seconds(duration: Duration) -> float:
    """A Duration in seconds."""
    return duration.ToTimedelta().total_seconds()


def elapsed(duration_s: float) -> str:
    """For example "0.42 ms", "12 ms", "1.30 s", "2 h 5 min"; "-" for nothing."""
    if duration_s <= 0:
        return "-"
    if duration_s < 0.010:
        return f"{duration_s * 1e3:.2f} ms"
    if duration_s < 1:
        return f"{duration_s * 1e3:.0f} ms"
    if duration_s < 120:
        return f"{duration_s:.2f} s"
    hours, minutes = divmod(round(duration_s / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
