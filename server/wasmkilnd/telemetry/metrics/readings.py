"""What the gauges read from other parts of the daemon, at about one moment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wasmkilnd.model import EngineWarmUp, HostStatus, Isolation, RemoteStatus, TierUsage
from wasmkilnd.telemetry.metrics.catalogue import QUOTAS


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """What an engine's pool is doing now."""

    workers: int = 0
    busy: int = 0
    queued: int = 0
    """Jobs that wait for a worker."""
    queued_in_background: int = 0
    """Those of them that no caller waits for."""
    queued_callers: int = 0
    """Callers whose jobs share the queue."""
    queued_bytes: int = 0
    """The size of the modules that wait."""
    expected_wait_s: float = 0.0
    """How long one more caller would wait."""


@dataclass(frozen=True, slots=True)
class TrafficUsage:
    """What calls hold now."""

    calls: int = 0
    receive_bytes: int = 0
    """Requests, those that arrive slowly counted in full."""
    send_bytes: int = 0
    """Bytes of responses that callers have not read yet."""
    pinned_bytes: int = 0
    """Bytes of artifacts held in memory while they are sent."""


@dataclass(frozen=True, slots=True)
class TlsStatus:
    """The files of TLS that are in force."""

    not_after_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """When each expires, by ``cert`` and ``client_ca``; empty where TLS is off."""
    failures: int = 0
    """How often changed files could not be used."""


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """How the last reload of something ended."""

    succeeded: bool
    succeeded_at_s: float
    """When what is in force was read, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What every source returned, at about one moment."""

    tiers: Mapping[str, TierUsage]
    engines: Mapping[str, EngineUsage]
    """In the order in which the engines were added."""
    flights: int
    quarantined: int
    pins: int
    traffic: TrafficUsage
    remote: RemoteStatus
    host: HostStatus
    quotas: Mapping[str, tuple[float, int]]
    """By kind: the largest part of a limit that an identity uses, and all refusals."""
    tls: TlsStatus
    warm_ups: Sequence[EngineWarmUp]
    engine_states: Mapping[str, bool]
    """By engine that is installed: whether it is served."""
    isolation: Mapping[str, Isolation]
    """By engine, how its least confined worker is confined."""
    ready: bool
    """Whether the daemon serves calls."""
    reloads: Mapping[str, ReloadStatus]
    """By what was read again: ``settings`` or ``files``."""
    log_lines_dropped: int
    """Since the start."""


def no_quotas() -> Mapping[str, tuple[float, int]]:
    """Return what there is to read while no identity has a quota."""
    return dict.fromkeys(QUOTAS, (0.0, 0))
