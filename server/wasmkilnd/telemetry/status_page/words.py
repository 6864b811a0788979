"""Bytes, durations and counts as people read them."""

from __future__ import annotations

import math

NONE = "\N{EN DASH}"
"""What stands for a figure that there is none of."""


def size(size_bytes: float) -> str:
    """Return a size, such as ``1.5 MiB``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{_short(value)} {unit}"
        value /= 1024
    return f"{_short(value)} TiB"


def duration(seconds: float) -> str:
    """Return a duration, such as ``340 ms`` or ``2 h 5 min``."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs" if seconds > 0 else "0 s"
    if seconds < 1:
        return f"{_short(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{_short(seconds)} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours >= 48:
        return f"{hours // 24} days"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes < 10 else f"{minutes} min"


def count(number: float) -> str:
    """Return a count, such as ``12,345`` or ``1.2 M``."""
    if number < 100_000:
        return f"{number:,.0f}"
    for unit in ("k", "M"):
        number /= 1000
        if number < 1000:
            return f"{_short(number)} {unit}"
    return f"{_short(number / 1000)} G"


def rate(per_s: float) -> str:
    """Return a rate, such as ``0.4/s``."""
    return f"{_short(per_s)}/s" if per_s else "0/s"


def percent(part: float) -> str:
    """Return a share of 1, never rounded to all or to nothing."""
    if 0.999 <= part < 1:
        return "99.9 %"
    if 0 < part < 0.001:
        return "0.1 %"
    return f"{part * 100:.4g} %" if part in (0, 1) else f"{part * 100:.1f} %"


def _short(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"
