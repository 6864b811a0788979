"""What callers, jobs and tiers are held to, and what they use of it now."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Abandoned(Enum):
    """What becomes of a job that runs when nobody waits for it any more."""

    FINISH = "finish"
    """It runs to its end, and its artifact is kept."""
    YIELD = "yield"
    """The same, as long as no other job waits for a worker; then it is ended."""
    KILL = "kill"
    """It is ended at once."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller's module, its compilation and the queue are held to."""

    module_bytes: int
    artifact_bytes: int
    compile_timeout_s: float
    compile_cpu_s: float
    compile_memory_bytes: int
    queue_length: int
    queue_bytes: int
    abandoned: Abandoned = Abandoned.FINISH


@dataclass(frozen=True, slots=True)
class TrafficLimits:
    """What callers may have under way, all together."""

    calls: int
    receive_bytes: int
    """Requests that arrive or are looked at."""
    send_bytes: int
    """Copies of answers that wait to be read."""
    send_pinned_bytes: int
    """Artifacts that are being sent."""
    caller_timeout_s: float
    """For a caller to send its request, and to take something of its answer."""


@dataclass(frozen=True, slots=True)
class TierUsage:
    """What a tier holds now."""

    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    evictions: int = 0


SWITCHED_OFF = "switched off"
"""The detail of a shared tier that is not wanted."""


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """Whether the shared tier answers, in words that hold no secret."""

    mode: str
    """``embedded``, ``external`` or ``none``."""
    up: bool
    detail: str = ""
    pending_writes: int = 0
    dropped_writes: int = 0

    @property
    def switched_off(self) -> bool:
        """Whether there is none because nobody wants one."""
        return self.mode == "none" and self.detail == SWITCHED_OFF


@dataclass(frozen=True, slots=True)
class DrainState:
    """What a daemon that is ending still waits for."""

    left_s: float
    calls: int
    flights: int
