"""Limits for the unit tests of traffic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wasmkilnd.model import TrafficLimits

_MIB = 1024 * 1024
_WIDE = TrafficLimits(
    calls=1000,
    receive_bytes=128 * _MIB,
    send_bytes=128 * _MIB,
    send_pinned_bytes=128 * _MIB,
    caller_timeout_s=60,
)


def limits(**changed: Any) -> TrafficLimits:
    """Return wide limits, but for those that are named."""
    return replace(_WIDE, **changed)
