"""Limits for the unit tests of traffic."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

_MIB = 1024 * 1024


def limits(**changed: Any) -> Any:
    """Return settings with wide limits, but for those that are named."""
    wide = {"max_calls": 1000, "receive_bytes": 512 * _MIB}
    return SimpleNamespace(**wide | {"caller_timeout_s": 60} | changed)
