"""What callers, jobs and tiers are held to, and what they use of it now."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Abandoned(Enum):
    """What the daemon does with a running job when no caller waits for it any more."""

    FINISH = "finish"
    """Let it finish, and keep its artifact."""
    YIELD = "yield"
    """Let it finish unless another job waits for a worker; then end it."""
    KILL = "kill"
    """End it at once."""


class Priority(Enum):
    """How a job competes for the machine's CPUs. The values are those of the job's order."""

    IDLE = "idle"
    """It gets what no other process wants; while others want it all, it runs as LOW."""
    LOW = "low"
    """It gets a third of what an ordinary process gets beside it."""
    NORMAL = "normal"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on a caller's module, its compilation and the queue."""

    module_bytes: int
    artifact_bytes: int
    compile_timeout_s: float
    compile_cpu_s: float
    compile_memory_bytes: int
    queue_length: int
    queue_bytes: int
    abandoned: Abandoned = Abandoned.FINISH
    priority: Priority = Priority.IDLE


@dataclass(frozen=True, slots=True)
class TrafficLimits:
    """Limits on the calls in progress of all callers together."""

    calls: int
    receive_bytes: int
    """For requests that arrive or are being read."""
    send_bytes: int
    """For copies of answers that callers have not read."""
    send_pinned_bytes: int
    """For artifacts that are being sent."""
    caller_timeout_s: float
    """How long a caller may take to send its request, and to read something of its answer."""


@dataclass(frozen=True, slots=True)
class TierUsage:
    """What a tier holds now."""

    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    evictions: int = 0
    pinned_entries: int = 0
    """Those that the tier keeps whatever else needs room."""
    pinned_bytes: int = 0
    let_go: int = 0
    """How often a pinned entry was let go, as those of all pins took more than half of the tier."""


SWITCHED_OFF = "switched off"
"""The detail of a shared tier that the settings switch off."""


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
        """Whether the settings switch the shared tier off."""
        return self.mode == "none" and self.detail == SWITCHED_OFF


@dataclass(frozen=True, slots=True)
class HostStatus:
    """Whether the host store can be used, and the writes to it."""

    pending_writes: int = 0
    dropped_writes: int = 0
    is_on: bool = False
    """Whether the settings switch it on."""
    up: bool = False
    """Whether its directory can be used, and its disk answers."""


@dataclass(frozen=True, slots=True)
class QuotaReading:
    """How much of a quota an identity has used."""

    identity: str
    kind: str
    """The quota's name in the policy, such as ``calls``."""
    used: float
    limit: float
    refused: int

    @property
    def ratio(self) -> float:
        """Return how much of the limit is used; above 1 if more than it allows."""
        return self.used / self.limit if self.limit else 0.0


@dataclass(frozen=True, slots=True)
class DrainState:
    """What a daemon that drains still waits for."""

    left_s: float
    calls: int
    flights: int
