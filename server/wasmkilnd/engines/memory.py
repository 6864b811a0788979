"""How much memory each job gets, so that the jobs of all engines together stay within a bound.

Before a job gets a worker it reserves memory, and its address space is limited to that. So the sum
of the reservations bounds what jobs use, whatever modules do and however wrong an estimate is.

**How much.** A job first gets what modules of its size needed before, and as much again; one that
compiles no less than a guess by the size. One that breaks is run again by its pool, with
``compile_memory_bytes``, and only that counts. One that needs more than those is run once more with
``compile_memory_retry_bytes``, if that is set: alone, as it then reserves all that there is.

**When.** A pool whose next job finds too little memory stands in a line with other pools, behind
those whose jobs are more urgent. There are two cases for a job that asks:

1. It is the next one of the first pool in the line, or more urgent than that one, or no pool stands
   there: it starts as soon as its memory is free.
2. It is behind that one, in its pool or in another: it starts now, before it, if it fits in beside
   it: if both, and all that have passed it so far, are no more than there is. So the validation of
   a small module does not wait for the memory of a large one, and the large one waits for no
   memory but of jobs that ran when its turn came. Its pool keeps its place where one that passed
   took the last worker.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import structlog

from wasmkilnd.engines.job import JobOrder
from wasmkilnd.engines.process import ARENAS
from wasmkilnd.machine import cpu_count
from wasmkilnd.model import FAST_SETTINGS, Limits, Reloadable

log = structlog.get_logger("wasmkilnd.engines")

# Has a pool start the jobs that there are workers and memory for; returns whether any started.
Fill: TypeAlias = "Callable[[], bool]"

_MIB = 2**20
# What a job maps and hardly touches: the heap of each thread takes 64 MiB of address space, its
# stack 2 MiB. Of 2 to 64 threads, 60 to 80 % of it was mapped.
_UNUSED_BYTES = 128 * _MIB + min(ARENAS, cpu_count()) * 64 * _MIB + cpu_count() * 2 * _MIB
# What a module needs, and for each of its bytes: of 36 real modules up to 69 MB none touched more,
# with 64 threads either (docs/how-to/size.md). That most need a quarter says nothing of others.
_GUESS_BYTES, _GUESS = 128 * _MIB, 160
# What a worker and its job take of the group's memory beyond what the job has reserved: what the
# kernel keeps for them, page tables apart, and the worker's pages that the job changes.
_BESIDE_BYTES = 32 * _MIB
# How many jobs of a class are remembered: a module that needed much counts until as many others
# came.
_RECENT = 8


class JobsGroup:
    """A control group for jobs, beside the daemon's: it bounds their memory, and they never swap.

    It is made where the daemon's own group is named ``daemon``, which says that the one above was
    given to the daemon (systemd: ``Delegate=memory``, ``DelegateSubgroup=daemon``). Elsewhere, and
    where the kernel refuses, nothing is done: the log says so, and jobs have their own limits.
    """

    _folder: Path | None = None
    # What jobs have together, without what they take beside.
    _bytes = 0

    def open(self, memory_bytes: int, root: Path = Path("/")) -> None:
        """Make the group. ``root`` holds /proc and /sys."""
        try:
            told = (root / "proc/self/cgroup").read_text()
            if not (own := re.search(r"^0::/(.+)/daemon$", told, re.MULTILINE)):
                log.debug("jobs have no control group: the daemon was not given one")
                return
            given = root / "sys/fs/cgroup" / own[1]
            self._write(given / "cgroup.subtree_control", "+memory")
            (group := given / "jobs").mkdir(exist_ok=True)
            self._write(group / "memory.max", str(memory_bytes))
        except OSError as refusal:
            log.info("jobs have no control group", cause=str(refusal))
        else:
            self._folder, self._bytes = group, memory_bytes
            # There is no such file where the kernel does not count swap.
            self._tell("memory.swap.max", 0)
            log.info("jobs have a control group", group=str(group), limit=memory_bytes)

    def limit(self, memory_bytes: int) -> None:
        """Change how much memory jobs have together."""
        if memory_bytes != self._bytes:
            self._bytes = memory_bytes
            self._set_limit()

    def enter(self, pid: int) -> None:
        """Move a worker there; what it starts follows."""
        self._tell("cgroup.procs", pid)
        self._set_limit()

    def events(self) -> Mapping[str, int]:
        """Return how often jobs met the group's limit, as the kernel counts; zeros without one.

        ``max``: it took memory back; ``oom``: that was not enough; ``oom_kill``: it killed one.
        """
        found = dict.fromkeys(("max", "oom", "oom_kill"), 0)
        if self._folder:
            text = (self._folder / "memory.events").read_text()
            told = (line.split() for line in text.splitlines())
            found |= {event: int(count) for event, count in told if event in found}
        return found

    def _set_limit(self) -> None:
        """Leave room for what jobs do not reserve: else the kernel kills one that may have more."""
        with suppress(OSError):
            if self._folder:
                processes = (self._folder / "cgroup.procs").read_text().split()
                # Page tables take 1/512 of what they map.
                beside = self._bytes // 256 + len(processes) * _BESIDE_BYTES
                self._tell("memory.max", self._bytes + beside)

    def _tell(self, file: str, number: int) -> None:
        try:
            if self._folder:
                self._write(self._folder / file, str(number))
        except OSError as refusal:
            log.warning("cannot use the control group of jobs", file=file, cause=str(refusal))

    def _write(self, file: Path, text: str) -> None:
        with file.open("r+", encoding="ascii") as there:  # The kernel makes them.
            there.write(text)


@dataclass(eq=False)
class Memory:
    """What all jobs of all engines may use, and what they have reserved. For one event loop."""

    limits: Reloadable[Limits]
    # Bounds the same, where there is one, and keeps jobs from swapping.
    group: JobsGroup = field(default_factory=JobsGroup)

    def __post_init__(self) -> None:
        # By job.
        self._reserved: dict[Hashable, int] = {}
        # The next job of each pool, its rank and what it needs, as pools began to wait.
        self._line: dict[Fill, tuple[Hashable, int, int]] = {}
        # What jobs reserved that passed the first in the line, while it stands there.
        self._passed: dict[Hashable, int] = {}
        # The peaks of recent jobs, by what they did and the size of their modules.
        self._peaks: dict[Hashable, deque[int]] = defaultdict(partial(deque, maxlen=_RECENT))

    @property
    def total(self) -> int:
        """What all jobs may reserve."""
        return self.limits.current.compile_memory_total_bytes

    @property
    def reserved(self) -> int:
        """What jobs have reserved."""
        return sum(self._reserved.values())

    def is_awaited(self, pool: Fill) -> bool:
        """Return whether a pool waits for the memory that other jobs have."""
        return pool in self._line and bool(self._reserved)

    def _in_order(self) -> list[Fill]:
        """The pools in the line, the one with the most urgent job first."""
        return sorted(self._line, key=lambda pool: self._line[pool][1])

    def take(self, pool: Fill, job: Hashable, rank: int, wanted: int, *, is_next: bool) -> bool:
        """Reserve memory for a job, if its turn allows; else its pool waits in the line.

        ``is_next``: whether no other job of its pool goes before it.
        """
        front, taken = next(iter(self._in_order()), pool), self.reserved
        passes = not is_next or (front != pool and self._line[front][1] <= rank)
        # A job that is alone gets whatever it needs: a reload may have lowered the total.
        fits = taken + wanted <= self.total or not taken
        if fits and passes:
            beside = self._line[front][2] + sum(self._passed.values())
            fits = wanted + beside <= self.total
        if fits:
            self._reserved[job] = wanted
            self.bound()
            if passes:
                self._passed[job] = wanted
            if is_next:
                self.leave(pool)
        elif is_next:
            self._line[pool] = job, rank, wanted
            if self._in_order()[0] != front:
                self._passed.clear()
        return fits

    def leave(self, pool: Fill, job: Hashable = None) -> None:
        """Take a pool out of the line; with ``job``, only if it stands there for that one."""
        if job and self._line.get(pool, (None,))[0] is not job:
            return
        if pool in self._in_order()[:1]:
            self._passed.clear()
        self._line.pop(pool, None)

    def give(self, job: Hashable) -> None:
        """Free what a job has reserved."""
        self._reserved.pop(job, None)
        self._passed.pop(job, None)
        self.bound()

    def bound(self) -> None:
        """Let the group have what there is, and what jobs had before a reload lowered that."""
        self.group.limit(max(self.total, self.reserved))

    def settle(self, pool: Fill) -> None:
        """Have pools start what they can: those in the line in its order, then ``pool``."""
        while any(fill() for fill in (*self._in_order(), pool)):
            pass

    def wanted(self, engine_id: str, order: JobOrder) -> int:
        """Return how much a job needs at first, by its like: never more than its limit."""
        guess = _GUESS_BYTES + _GUESS * order.size_bytes
        peaks = self._peaks.get(_class_of(engine_id, order))
        needs = 2 * max(peaks) if peaks else guess
        if order.order["op"] == "compile":
            needs = max(needs, guess)
        return min(order.limits.compile_memory_bytes, needs + _UNUSED_BYTES)

    def learn(self, engine_id: str, order: JobOrder, peak_bytes: int) -> None:
        """Take down how much a job needed that an engine has done to its end."""
        if order.wasm is not None and peak_bytes:
            self._peaks[_class_of(engine_id, order)].append(peak_bytes)


def _class_of(engine_id: str, order: JobOrder) -> Hashable:
    """Return what decides how much memory a job needs: of each engine there are some hundred."""
    told, name = order.order, engine_id.partition("-")[0]
    is_fast = FAST_SETTINGS.get(name) in told.get("settings", {}).items()
    return engine_id, told["op"], told.get("kind"), is_fast, order.size_bytes.bit_length()
