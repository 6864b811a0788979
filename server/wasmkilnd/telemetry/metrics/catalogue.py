"""Every metric that the daemon keeps: its name, meaning, labels and buckets."""

from __future__ import annotations

from functools import partial
from typing import Final

from wasmkilnd.errors import Reason
from wasmkilnd.model import Origin
from wasmkilnd.telemetry.metrics.series import OTHER, Count, Family
from wasmkilnd.telemetry.metrics.window import Window

TIERS: Final = ("memory", "redis")
OK: Final = "ok"
ERROR: Final = "error"
OUTCOMES: Final = (OK, *(reason.value.lower() for reason in Reason))
GRPC_CODES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)

# All in seconds, and multiples of 1, 2.5 and 5.
# A memory hit takes microseconds, Redis 0.5 to 60 ms by size; its timeout is a second.
_TIER_BOUNDS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
# Half of the real modules compile within 0.1 s, nine of ten within 1 s; the limit is 30 s.
_COMPILE_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_QUEUE_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# From a memory hit of 0.5 ms to a cold compile.
_RPC_BOUNDS = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
# The limits that protect callers from each other; see errors.py.
LIMITS: Final = ("queue", "deadline", "calls", "connections", "receive", "send", "descriptors")
CLOSED_CAUSES: Final = ("taken_back", "only_frames", "no_room", "not_read")
ABANDONED_STAGES: Final = ("queued", "running")
# How many causes of rejection are told apart, all tiers together.
_MAX_CAUSES = 32


class Catalogue:
    """The families of series, zero-initialised where the label values are known beforehand."""

    def __init__(self) -> None:
        tier_window = partial(Window, _TIER_BOUNDS)
        self.lookups = Family(
            "tier_lookups", "Look-ups in a cache tier.", ("tier", "what", "outcome"), Count
        )
        self.lookup_durations = Family(
            "tier_lookup_duration_seconds",
            "Look-ups that a tier answered, with a hit or a miss.",
            ("tier", "what"),
            tier_window,
        )
        self.stores = Family(
            "tier_stores", "Artifacts and modules put into a tier.", ("tier", "outcome"), Count
        )
        self.store_durations = Family(
            "tier_store_duration_seconds", "Stores that succeeded.", ("tier",), tier_window
        )
        self.rejected = Family(
            "values_rejected",
            "Stored values that did not verify and were deleted.",
            ("tier", "cause"),
            Count,
            room=_MAX_CAUSES,
        )
        self.compiles = Family("compiles", "Compilations that ended.", ("engine", "outcome"), Count)
        self.compile_durations = Family(
            "compile_duration_seconds",
            "How long the engine worked.",
            ("engine", "outcome"),
            partial(Window, _COMPILE_BOUNDS),
        )
        self.queue_waits = Family(
            "queue_wait_seconds",
            "How long a compilation waited for a worker.",
            ("engine",),
            partial(Window, _QUEUE_BOUNDS),
        )
        self.workers_replaced = Family(
            "workers_replaced", "Workers that died and were replaced.", ("engine",), Count
        )
        self.abandoned = Family(
            "abandoned",
            "Jobs that were ended because nobody waited for them.",
            ("engine", "stage"),
            Count,
        )
        self.refused = Family(
            "refused", "Calls that met a limit which protects the others.", ("limit",), Count
        )
        self.connections_closed = Family(
            "connections_closed",
            "Connections that the daemon closed for the others' sake.",
            ("cause",),
            Count,
        )
        self.served = Family(
            "served", "Compile calls that were answered, by where from.", ("origin",), Count
        )
        self.flights_joined = Family(
            "flights_joined", "Calls that shared another call's compilation.", (), Count
        )
        self.fleet_turns = Family(
            "fleet_turns",
            "Waits for a turn to compile, among the daemons on one Redis, by how they ended.",
            ("outcome",),
            Count,
        )
        self.quarantine_refused = Family(
            "quarantine_refused",
            "Compiles that were refused for what an earlier one of the module did.",
            (),
            Count,
        )
        self.rpcs = Family("rpcs", "RPCs that ended.", ("method", "code"), Count)
        self.rpc_durations = Family(
            "rpc_duration_seconds",
            "How long an RPC took, up to its last byte.",
            ("method",),
            partial(Window, _RPC_BOUNDS),
        )
        self.sent_bytes = Family("sent_bytes", "Artifact bytes sent to callers.", (), Count)
        self._begin()

    @property
    def counts(self) -> tuple[Family[Count], ...]:
        """Every family of counters."""
        return (
            self.lookups,
            self.stores,
            self.rejected,
            self.compiles,
            self.workers_replaced,
            self.abandoned,
            self.refused,
            self.connections_closed,
            self.served,
            self.flights_joined,
            self.fleet_turns,
            self.quarantine_refused,
            self.rpcs,
            self.sent_bytes,
        )

    @property
    def durations(self) -> tuple[Family[Window], ...]:
        """Every family of durations."""
        return (
            self.lookup_durations,
            self.store_durations,
            self.compile_durations,
            self.queue_waits,
            self.rpc_durations,
        )

    @property
    def engine_ids(self) -> list[str]:
        """The engines that are known, in the order in which they were added."""
        return [engine_id for (engine_id,), _ in self.queue_waits.all() if engine_id != OTHER]

    def add_engine(self, engine_id: str) -> None:
        """Make an engine known. Doing so again changes nothing."""
        for outcome in OUTCOMES:
            self.compiles.add(engine_id, outcome)
        # The other outcomes' durations begin when they happen: a histogram is 15 lines long.
        self.compile_durations.add(engine_id, OK)
        self.queue_waits.add(engine_id)
        self.workers_replaced.add(engine_id)
        for stage in ABANDONED_STAGES:
            self.abandoned.add(engine_id, stage)

    def add_method(self, method: str) -> None:
        """Make an RPC known by its full name. Doing so again changes nothing."""
        self.rpc_durations.add(method)
        for code in GRPC_CODES:
            self.rpcs.add(method, code)

    def _begin(self) -> None:
        for tier in TIERS:
            for what in ("artifact", "module"):
                self.lookup_durations.add(tier, what)
                for outcome in ("hit", "miss", ERROR):
                    self.lookups.add(tier, what, outcome)
            self.store_durations.add(tier)
            for outcome in (OK, ERROR):
                self.stores.add(tier, outcome)
            self.rejected.add(tier, OTHER)
        for limit in LIMITS:
            self.refused.add(limit)
        for cause in CLOSED_CAUSES:
            self.connections_closed.add(cause)
        for origin in Origin:
            self.served.add(origin.value)
        self.flights_joined.add()
        self.quarantine_refused.add()
        for outcome in ("taken", "seized", "made", "failed", "late", "alone"):
            self.fleet_turns.add(outcome)
        self.sent_bytes.add()
