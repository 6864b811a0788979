"""Loads redis-py without OpenTelemetry.

Wherever that is installed, redis-py loads it for metrics of its own, which the daemon does not
use: a quarter of all that the start of the daemon loads, whether or not traces are on.
"""

from __future__ import annotations

import sys

_is_known = "opentelemetry" in sys.modules
# None keeps Python from importing it.
sys.modules.setdefault("opentelemetry", None)  # type: ignore[arg-type]

import redis.asyncio  # noqa: E402, F401

if not _is_known:
    del sys.modules["opentelemetry"]
