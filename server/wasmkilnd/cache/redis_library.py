"""Loads redis-py without OpenTelemetry.

Wherever that is installed, redis-py loads it for metrics of its own, which the daemon does not
use: a quarter of all that the start of the daemon loads, whether or not traces are on.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, cast

_HIDDEN = "opentelemetry"


def _load() -> None:
    modules = cast("dict[str, Any]", sys.modules)
    if _HIDDEN in modules:
        return
    modules[_HIDDEN] = None
    try:
        importlib.import_module("redis.asyncio")
    finally:
        del modules[_HIDDEN]


_load()
