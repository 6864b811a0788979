"""What the daemon hands in: functions that return what there is now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wasmkilnd.model import Isolation, Strike, UnservedEngine
from wasmkilnd.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class EngineView:
    """An engine that is served."""

    id: str
    interpreter: str
    default: bool
    isolation: Isolation
    advisories: Sequence[str] = ()
    """Known vulnerabilities of the code that it compiles, in words."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the page gets what it shows. Each function returns at once."""

    host: str
    """The name of the machine: who looks at several daemons has to tell them apart."""
    metrics: Metrics
    state: Callable[[], tuple[bool, str]]
    """Whether the daemon serves calls, and a sentence."""
    engines: Callable[[], Sequence[EngineView]]
    unserved: Callable[[], Sequence[UnservedEngine]]
    isolation: Callable[[], str]
    """How jobs are confined, in one line."""
    isolation_required: bool
    """Whether an engine is served only if its jobs are confined."""
    quarantined: Callable[[], Sequence[Strike]]
    namespaces: Callable[[], int]
