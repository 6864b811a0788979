"""What one identity uses now and used lately: numbers only, no limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from wasmkilnd.access.quotas.windows import SlidingSum, TokenBucket
from wasmkilnd.account import Bill
from wasmkilnd.errors import WasmkilnError

_HOUR_S = 3600.0


@dataclass(slots=True)
class Queued:
    """The jobs of an identity that wait for one engine."""

    jobs: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class Usage:
    """What one identity uses."""

    clock: Callable[[], float]
    kept_s: float
    """How long stored bytes count as kept."""
    calls: int = 0
    in_flight_bytes: int = 0
    works: int = 0
    """Pieces of work that it pays for and that go on."""
    queued: dict[str, Queued] = field(default_factory=dict)
    """By engine; those with no job have no entry."""
    compiles: TokenBucket = field(default_factory=TokenBucket)
    cpu: SlidingSum = field(default_factory=lambda: SlidingSum(_HOUR_S))
    kept: SlidingSum = field(init=False)

    def __post_init__(self) -> None:
        self.kept = SlidingSum(self.kept_s)

    @property
    def idle(self) -> bool:
        """Whether nothing goes on for it."""
        return not (self.calls or self.in_flight_bytes or self.works)

    @contextmanager
    def waiting(self, engine_id: str, size_bytes: int) -> Iterator[None]:
        """Count a job that waits for a worker."""
        queued = self.queued.setdefault(engine_id, Queued())
        queued.jobs += 1
        queued.size_bytes += size_bytes
        try:
            yield
        finally:
            queued.jobs -= 1
            queued.size_bytes -= size_bytes
            if not queued.jobs:
                del self.queued[engine_id]


@dataclass(slots=True)
class CountingBill(Bill):
    """The bill of one piece of work; it adds to the usage of who started it."""

    usage: Usage
    held_bytes: int
    unused_compile: bool
    """Whether it took a compile of its account that no job has used yet."""
    place: Callable[[str, int, Callable[[], float]], WasmkilnError | None]
    closed: bool = False

    def __post_init__(self) -> None:
        self.usage.works += 1

    def no_place_in_queue(
        self, engine_id: str, size_bytes: int, wait_s: Callable[[], float]
    ) -> WasmkilnError | None:
        """See ``Bill``."""
        return self.place(engine_id, size_bytes, wait_s)

    @contextmanager
    def waiting(self, engine_id: str, size_bytes: int) -> Iterator[None]:
        """See ``Bill``."""
        with self.usage.waiting(engine_id, size_bytes):
            yield

    def job_began(self) -> None:
        """See ``Bill``."""
        self.unused_compile = False

    def job_ended(self, cpu_s: float) -> None:
        """See ``Bill``."""
        self.usage.cpu.add(cpu_s, self.usage.clock())

    def stored(self, size_bytes: int) -> None:
        """See ``Bill``."""
        self.usage.kept.add(size_bytes, self.usage.clock())

    def close(self) -> None:
        """See ``Bill``."""
        if self.closed:
            return
        self.closed = True
        self.usage.works -= 1
        self.usage.in_flight_bytes -= self.held_bytes
        if self.unused_compile:
            self.usage.compiles.give_back()
