"""What a policy gives a namespace and an identity beyond roles."""

from __future__ import annotations

import re
from dataclasses import dataclass

NAMESPACE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""Names of namespaces, other than that of the default one."""


@dataclass(frozen=True, slots=True)
class NamespaceLimits:
    """How much of the caches on this machine a namespace has; None for an equal part."""

    memory_bytes: int | None = None
    host_store_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """The most that one identity may use; None for no limit."""

    name: str
    """Its name in the policy: a bounded label of metrics."""
    calls: int | None = None
    """At once."""
    bytes_in_flight: int | None = None
    """Of requests that arrive, and of modules under way."""
    queue_share: float | None = None
    """Of an engine's queue, above 0 and at most 1."""
    compiles_per_minute: float | None = None
    cpu_seconds_per_hour: float | None = None
    bytes_kept: int | None = None
    """In the tiers."""
