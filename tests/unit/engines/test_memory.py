"""How much memory jobs get, which of them wait for it, and which run again with more."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.engines import verdict
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.engines.job import JobOrder, JobReport
from wasmkilnd.engines.memory import JobsGroup, Memory
from wasmkilnd.engines.pool import Job, WorkerPool
from wasmkilnd.engines.process import Worker
from wasmkilnd.errors import Fault, WasmkilnError
from wasmkilnd.model import Limits, Reloadable
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.waits.flights import Waiter, Waiters

from tests.doubles.clock import Clock
from tests.unit.engines.limits import LIMITS
from tests.unit.engines.test_pool import FakeProcess, settled

MIB = 2**20
OK = {"outcome": "ok"}


@dataclass(eq=False)
class Running:
    """A job that a worker runs until a test ends it."""

    order: JobOrder
    done: asyncio.Future[JobReport] = field(default_factory=asyncio.Future)

    @property
    def memory(self) -> int:
        return self.order.limits.compile_memory_bytes // MIB

    async def end(self, **report: Any) -> None:
        report.setdefault("result", OK)
        self.done.set_result(JobReport(elapsed_s=1.0, **report))
        await settled()


@dataclass(eq=False)
class ItsWorker:
    """A worker of a machine."""

    jobs: list[Running]
    process: FakeProcess = field(default_factory=FakeProcess)
    pid: int = 1

    async def run(self, order: JobOrder) -> JobReport:
        job = Running(order)
        self.jobs.append(job)
        try:
            return await job.done
        except asyncio.CancelledError:
            self.process.returncode = -9
            raise
        finally:
            self.jobs.remove(job)


class Machine:
    """Engines whose jobs share ``total`` MiB; each may have ``most``, and ``retry`` alone."""

    def __init__(self, total: int, most: int, retry: int = 0, engines: str = "ab") -> None:
        self.limits = replace(
            LIMITS,
            compile_memory_bytes=most * MIB,
            compile_memory_total_bytes=total * MIB,
            compile_memory_retry_bytes=retry * MIB,
            queue_length=100,
            queue_bytes=10**9,
        )
        self.now = Reloadable(self.limits)
        self.memory, self.metrics = Memory(self.now), Metrics("test")
        # In the order in which they began.
        self.jobs: list[Running] = []
        self.pools = {
            name: WorkerPool(f"{name}-1", _never, 4, self.now, self.metrics, self.memory)
            for name in engines
        }
        for pool in self.pools.values():
            for _ in range(pool.size):
                pool.offer(cast(Worker, ItsWorker(self.jobs)))

    @property
    def given(self) -> list[int]:
        """How much memory each job has that runs, in MiB."""
        return [job.memory for job in self.jobs]

    @property
    def ran_again(self) -> dict[tuple[str, ...], float]:
        """How often jobs ran again: with how much memory, and how that ended."""
        return {at: many for at, many in self.metrics.counts["jobs_run_again"].items() if many}

    def ask(
        self,
        engine: str = "a",
        size: int = 1,
        caller: str = "c",
        limits: Limits | None = None,
        waiters: Waiters | None = None,
    ) -> asyncio.Task[JobReport]:
        order = JobOrder({"op": "compile"}, limits or self.limits, bytes(size))
        job = Job(order, waiters or Waiters.of(Waiter(caller)))
        return asyncio.create_task(self.pools[engine].run(job))

    def limited(self, most: int) -> Limits:
        """Limits for a job that gets just as much: what it could get by its size is more."""
        return replace(self.limits, compile_memory_bytes=most * MIB)


async def _never() -> Worker:
    raise NotImplementedError


# --- What waits, and what passes -------------------------------------------------------------


async def test_jobs_of_all_engines_together_have_no_more_than_there_is() -> None:
    machine = Machine(total=250, most=100)
    tasks = [machine.ask(engine) for engine in "abab"]
    await settled()
    assert machine.given == [100, 100]
    assert machine.pools["a"].usage().queued_for_memory == 1
    assert machine.pools["a"].usage().expected_wait_s > 0
    assert machine.memory.reserved == 200 * MIB
    await machine.jobs[0].end()
    assert machine.given == [100, 100]
    for _ in range(3):
        await machine.jobs[0].end()
    await asyncio.gather(*tasks)
    assert machine.memory.reserved == 0


async def test_a_small_job_passes_a_large_one_that_it_does_not_hold_up() -> None:
    machine = Machine(total=250, most=200)
    machine.ask(limits=machine.limited(100))
    large = machine.ask(limits=machine.limited(200))
    await settled()
    small = [machine.ask("ab"[n % 2], limits=machine.limited(20)) for n in range(4)]
    await settled()
    # Two fit in beside the large one; the others wait, though there is memory now.
    assert machine.given == [100, 20, 20]
    await machine.jobs[1].end()
    assert machine.given == [100, 20, 20]
    await machine.jobs[0].end()
    assert machine.given == [20, 20, 200]
    await machine.jobs[2].end()
    await large
    while machine.jobs:
        await machine.jobs[0].end()
    assert all(each.done() for each in small)


async def test_a_large_job_waits_for_no_other_jobs_than_ran_before_however_many_come() -> None:
    machine = Machine(total=250, most=240)
    machine.ask(limits=machine.limited(100))
    await settled()
    large = machine.ask("b", limits=machine.limited(240))
    await settled()
    for n in range(50):
        machine.ask("ab"[n % 2], caller=f"c{n}", limits=machine.limited(20))
    await settled()
    assert machine.given == [100]
    await machine.jobs[0].end()
    assert machine.given == [240]
    await machine.jobs[0].end()
    assert large.done()
    assert len(machine.jobs) == 8


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_large_job_keeps_its_turn_where_one_that_passes_takes_the_last_worker(
    is_cancelled: bool,
) -> None:
    machine = Machine(total=250, most=150)
    machine.ask("b", limits=machine.limited(100))
    for _ in range(3):
        machine.ask(limits=machine.limited(10))
    await settled()
    large = machine.ask()
    passes = machine.ask(limits=machine.limited(10))
    await settled()
    assert machine.given == [100, 10, 10, 10, 10]
    behind = machine.ask("b", limits=machine.limited(100))
    await settled()
    # There is memory for it, which the large one would then wait for.
    assert machine.given == [100, 10, 10, 10, 10]
    if is_cancelled:
        large.cancel()
        await settled()
        assert machine.given == [100, 10, 10, 10, 10, 100]
        return
    await machine.jobs[0].end()
    assert machine.given == [10, 10, 10, 10]
    await machine.jobs[3].end()
    assert passes.done()
    assert machine.given == [10, 10, 10, 150]
    await machine.jobs[3].end()
    assert large.done()
    assert machine.given == [10, 10, 10, 100]
    assert not behind.done()


async def test_what_waited_behind_a_job_that_is_gone_goes_on_at_once() -> None:
    machine = Machine(total=250, most=240)
    machine.ask(limits=machine.limited(100))
    large = machine.ask(limits=machine.limited(240))
    machine.ask("b", limits=machine.limited(100))
    await settled()
    assert machine.given == [100]
    large.cancel()
    await settled()
    assert machine.given == [100, 100]


async def test_a_caller_waits_for_no_memory_that_background_work_of_another_engine_wants() -> None:
    machine = Machine(total=250, most=250)
    machine.ask(limits=machine.limited(100))
    await settled()
    behind = machine.ask(waiters=Waiters.of(Waiter("c", background=True)))
    await settled()
    machine.ask("b", limits=machine.limited(150))
    await settled()
    assert machine.given == [100, 150]
    machine.ask("b", limits=machine.limited(200))
    await settled()
    # More urgent than what came before it, and next as soon as there is memory.
    await machine.jobs[0].end()
    await machine.jobs[0].end()
    assert machine.given == [200]
    await machine.jobs[0].end()
    assert machine.given == [250]
    await machine.jobs[0].end()
    assert behind.done()


@pytest.mark.parametrize("how", ["out of memory", "is killed"])
async def test_a_job_that_all_callers_have_left_is_not_tried_again(how: str) -> None:
    machine = Machine(total=300, most=100, retry=200)
    caller = Waiter("c")
    waiters = Waiters.of(caller)
    task = machine.ask(waiters=waiters)
    waiters.drop = task.cancel
    await settled()
    waiters.leave(caller)
    await settled()
    assert machine.given == [100]
    await machine.jobs[0].end(**broken(how))
    await asyncio.gather(task, return_exceptions=True)
    assert not machine.jobs
    assert machine.pools["a"].alive == 4


async def test_where_all_wait_for_memory_of_other_engines_nothing_is_stuck() -> None:
    machine = Machine(total=100, most=100)
    machine.ask("a")
    machine.ask("b")
    await settled()
    waits = machine.pools["b"]
    assert (waits.waiting, waits.busy) == (1, 0)
    assert machine.memory.is_awaited(waits.fill)
    await machine.jobs[0].end()
    assert not machine.memory.is_awaited(waits.fill)


async def test_a_job_that_needs_more_than_a_reload_has_left_runs_alone() -> None:
    machine = Machine(total=250, most=200)
    machine.ask(limits=machine.limited(50))
    await settled()
    machine.now.current = replace(machine.limits, compile_memory_total_bytes=100 * MIB)
    machine.ask()
    await settled()
    assert machine.given == [50]
    await machine.jobs[0].end()
    assert machine.given == [200]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 1), st.integers(1, 100)),
        st.tuples(st.sampled_from(["end", "break", "cancel"]), st.integers(0, 50), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_whatever_happens_the_sum_holds_and_nothing_waits_for_ever(
    script: list[tuple[str, int, int]],
) -> None:
    async def play() -> None:
        machine = Machine(total=150, most=100, retry=120)
        tasks: list[asyncio.Task[JobReport]] = []

        async def end(number: int, how: str) -> None:
            if machine.jobs:
                job = machine.jobs[number % len(machine.jobs)]
                await job.end(**({"signal": 9, "result": None} if how == "break" else {}))

        for what, number, most in script:
            if what == "ask":
                tasks.append(machine.ask("ab"[number], limits=machine.limited(most)))
            elif what == "cancel":
                left = [task for task in tasks if not task.done()]
                for task in left[number : number + 1]:
                    task.cancel()
            await settled()
            if what in ("end", "break"):
                await end(number, what)
            for pool in machine.pools.values():
                while pool.alive < pool.size:  # Its job was cancelled.
                    pool.offer(cast(Worker, ItsWorker(machine.jobs)))
            await settled()
            assert sum(machine.given) <= 150
            assert machine.given.count(120) == 0 or len(machine.given) == 1
        while machine.jobs:
            await end(0, "end")
            assert sum(machine.given) <= 150
        assert all(task.done() for task in tasks)
        assert machine.memory.reserved == 0
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(play())


# --- How much ---------------------------------------------------------------------------------


async def learned(machine: Machine, *peaks: int, size: int = 100, **report: Any) -> int:
    """Return what a job gets after jobs of its size had these peaks, in MiB."""
    for peak in peaks:
        task = machine.ask(size=size)
        await settled()
        await machine.jobs[0].end(peak_memory_bytes=peak * MIB, **report)
        await task
    task = machine.ask(size=size)
    await settled()
    found = machine.given[0]
    task.cancel()
    await settled()
    machine.pools["a"].offer(cast(Worker, ItsWorker(machine.jobs)))
    return found


async def test_a_job_gets_twice_what_its_like_needed_and_room_for_what_is_not_used() -> None:
    machine = Machine(total=10**5, most=10**4)
    room = await learned(machine) - 128
    assert await learned(machine, 100) == 200 + room
    assert await learned(machine, 10) == 200 + room
    # Of another size; and the first of its size, or one whose like needed little.
    assert await learned(machine, 75, size=10_000) == 150 + room
    assert await learned(machine, size=2**23) == 128 + 160 * 8 + room
    assert await learned(machine, 10, size=2**23) == 128 + 160 * 8 + room
    # Never more than the limit.
    assert await learned(machine, 10**4) == 10**4


async def test_a_module_that_needed_much_counts_until_8_others_came() -> None:
    machine = Machine(total=10**5, most=10**4)
    room = await learned(machine) - 128
    assert await learned(machine, 1000) == 2000 + room
    assert await learned(machine, *[70] * 7) == 2000 + room
    assert await learned(machine, 70) == 140 + room


async def test_what_breaks_or_is_refused_teaches_nothing() -> None:
    machine = Machine(total=10**5, most=10**4)
    room = await learned(machine, 100) - 200
    refused = {"outcome": "unsupported", "message": "it has no such type"}
    assert await learned(machine, 1000, result=refused) == 200 + room
    assert await learned(machine, 1000, result=None, timed_out=True) == 200 + room


# --- Again, with more -------------------------------------------------------------------------

BROKEN: dict[str, dict[str, Any]] = {
    "out of memory": {"result": {"outcome": "out_of_memory"}},
    "aborts": {"signal": 6, "last_words": "memory allocation of 9 bytes failed"},
    "crashes": {"signal": 11, "sent": {Type.CONFIGURED}},
    "dies of its settings": {"signal": 6},
    "exits": {"exit_code": 70},
    "is killed": {"signal": 9},
    "talks nonsense": {"protocol_error": "unexpected frame", "signal": 9},
}
FINAL: dict[str, dict[str, Any]] = {
    "valid": {},
    "invalid": {"result": {"outcome": "invalid", "message": "bad", "offset": 1}, "module_bytes": 9},
    "settings refused": {"result": {"outcome": "settings_refused", "message": "no"}},
    "too slow": {"timed_out": True, "signal": 9},
    "too dear": {"signal": 24},
}


def broken(how: str) -> dict[str, Any]:
    return {"result": None, **BROKEN[how]}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_job_that_broke_with_less_runs_again_with_its_limit_before_others(how: str) -> None:
    machine = Machine(total=10**4, most=10**4)
    task = machine.ask()
    await settled()
    others = [machine.ask(caller="other", limits=machine.limited(10**4)) for _ in range(5)]
    await settled()
    assert machine.given[0] < 10**4
    await machine.jobs[0].end(**broken(how))
    # Two others wait, and there is a worker for them. It needs all that there is.
    for running in (3, 2, 1):
        assert len(machine.jobs) == running
        await machine.jobs[0].end()
    assert machine.given == [10**4]
    await machine.jobs[0].end()
    assert (await task).result == OK
    assert machine.ran_again == {("limit", "ok"): 1}
    assert sum(each.done() for each in others) == 3


async def test_a_run_that_broke_is_no_time_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(now_s=100)
    monkeypatch.setattr(time, "monotonic", clock)
    machine = Machine(total=10**4, most=10**4)
    job = Job(JobOrder({"op": "compile"}, machine.limits, b"0"), asked_s=clock())
    task = asyncio.create_task(machine.pools["a"].run(job))
    await settled()
    clock.now_s += 20
    beside = machine.ask("b", limits=machine.limited(1000))
    await settled()
    await machine.jobs[0].end(**broken("out of memory"))
    clock.now_s += 3
    await machine.jobs[0].end()
    assert beside.done()
    await machine.jobs[0].end()
    assert task.done()
    assert job.queued_s == 3


@pytest.mark.parametrize("how", FINAL)
async def test_verdicts_and_time_limits_are_final_whatever_memory_there_was(how: str) -> None:
    machine = Machine(total=10**4, most=10**4)
    task = machine.ask()
    await settled()
    await machine.jobs[0].end(**{"result": None if how.startswith("too") else OK, **FINAL[how]})
    assert task.done()
    assert not machine.jobs


async def test_the_second_end_is_judged_and_no_third_follows() -> None:
    machine = Machine(total=10**4, most=10**4)
    task = machine.ask()
    await settled()
    await machine.jobs[0].end(**broken("out of memory"))
    await machine.jobs[0].end(**broken("out of memory"), peak_memory_bytes=9000 * MIB)
    with pytest.raises(WasmkilnError, match="10,485,760,000 bytes of compile_memory_bytes") as why:
        verdict.read(await task, "a-1", "compiling", machine.limits)
    assert why.value.fault is Fault.MODULE
    assert machine.ran_again == {("limit", "failed"): 1}


@pytest.mark.parametrize("how", ["out of memory", "aborts", "is killed"])
async def test_a_job_that_exceeds_its_limit_is_tried_once_more_alone(how: str) -> None:
    machine = Machine(total=300, most=100, retry=200)
    task, beside = machine.ask(), machine.ask("b")
    await settled()
    waiting = [machine.ask("ab"[n % 2], limits=machine.limited(1)) for n in range(9)]
    await settled()
    assert machine.given.count(100) == 2
    await machine.jobs[0].end(**broken(how))
    while 100 in machine.given or 1 in machine.given:
        assert 200 not in machine.given
        await machine.jobs[0].end()
    assert beside.done()
    # What has come before it at the other engine, and does not fit in beside it, waits.
    assert machine.given == [200]
    await machine.jobs[0].end(**broken("out of memory"), peak_memory_bytes=150 * MIB)
    with pytest.raises(WasmkilnError, match="209,715,200 bytes of compile_memory_retry_bytes"):
        verdict.read(await task, "a-1", "compiling", machine.limits)
    assert machine.ran_again == {("retry", "failed"): 1}
    while machine.jobs:
        await machine.jobs[0].end()
    assert all(each.done() for each in waiting)


async def test_jobs_that_run_again_take_turns_with_those_of_other_callers() -> None:
    machine = Machine(total=400, most=100, retry=200)
    hogs = [machine.ask(caller="hog") for _ in range(4)]
    await settled()
    for _ in hogs:
        await machine.jobs[0].end(**broken("out of memory"))
    assert machine.given == [200]
    machine.ask(caller="other")
    for memory in (200, 100, 200):
        await machine.jobs[0].end(**broken("out of memory") if machine.given == [200] else {})
        assert machine.given == [memory]


@pytest.mark.parametrize("how", sorted({*BROKEN} - {"out of memory", "aborts", "is killed"}))
async def test_what_is_no_want_of_memory_is_not_tried_with_more_than_the_limit(how: str) -> None:
    machine = Machine(total=300, most=100, retry=200)
    task = machine.ask()
    await settled()
    await machine.jobs[0].end(**broken(how))
    assert task.done()


# --- A control group ---------------------------------------------------------------------------

UNIT = "system.slice/kiln.service"


def unit(root: Path, *missing: str, own: str = "daemon") -> Path:
    """Make a stand-in for what systemd gives a unit with ``Delegate=memory``; return its folder.

    The files are those that the kernel makes.
    """
    folder = root / "sys/fs/cgroup" / UNIT
    (folder / "jobs").mkdir(parents=True)
    files = "cgroup.subtree_control", "jobs/memory.max", "jobs/memory.swap.max", "jobs/cgroup.procs"
    for name in {*files} - {*missing}:
        (folder / name).write_text("")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::/{UNIT}/{own}\n")
    return folder


def limit_of(folder: Path) -> float:
    """Return what the kernel lets the group have, in MiB."""
    return int((folder / "jobs/memory.max").read_text()) / MIB


def test_a_daemon_that_was_given_a_group_puts_jobs_into_one_of_their_own(tmp_path: Path) -> None:
    folder, group = unit(tmp_path), JobsGroup()
    group.open(6000 * MIB, tmp_path)
    assert (folder / "cgroup.subtree_control").read_text() == "+memory"
    assert limit_of(folder) == 6000
    assert (folder / "jobs/memory.swap.max").read_text() == "0"
    group.enter(77)
    assert (folder / "jobs/cgroup.procs").read_text() == "77"
    # There is room for the worker, and for the page tables of jobs.
    assert limit_of(folder) > 6000 + 20 + 6000 / 512
    group.limit(7000 * MIB)  # A reload.
    assert limit_of(folder) > 7000 + 20 + 7000 / 512
    (folder / "jobs/memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\n")
    assert group.events() == {"max": 7, "oom": 2, "oom_kill": 1}


async def test_the_group_shrinks_after_a_reload_when_jobs_have_given_back_what_they_had(
    tmp_path: Path,
) -> None:
    machine, folder = Machine(total=2000, most=380), unit(tmp_path)
    machine.memory.group.open(2000 * MIB, tmp_path)
    tasks = [machine.ask() for _ in range(4)]
    await settled()
    machine.now.current = replace(machine.limits, compile_memory_total_bytes=1000 * MIB)
    machine.memory.bound()
    for running in (4, 3):
        assert running * 380 < limit_of(folder) < running * 390
        await machine.jobs[0].end()
    assert 1000 < limit_of(folder) < 1010
    while machine.jobs:
        await machine.jobs[0].end()
    assert all(task.done() for task in tasks)


def test_a_kernel_that_does_not_count_swap_has_a_group_too(tmp_path: Path) -> None:
    folder, group = unit(tmp_path, "jobs/memory.swap.max"), JobsGroup()
    group.open(1000 * MIB, tmp_path)
    group.enter(77)
    assert (folder / "jobs/cgroup.procs").read_text() == "77"
    assert limit_of(folder) > 1000


@pytest.mark.parametrize("own", ["", "kiln", "daemon/below"])
def test_a_group_that_was_not_given_is_left_alone(tmp_path: Path, own: str) -> None:
    folder, group = unit(tmp_path, own=own), JobsGroup()
    group.open(1024 * MIB, tmp_path)
    group.enter(77)
    group.limit(1024 * MIB)
    assert not any(each.read_text() for each in folder.rglob("*") if each.is_file())
    assert group.events() == {"max": 0, "oom": 0, "oom_kill": 0}


@pytest.mark.parametrize("missing", ["cgroup.subtree_control", "jobs/memory.max"])
def test_what_the_kernel_refuses_is_told_once(
    tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, group = unit(tmp_path, missing), JobsGroup()
    group.open(1024 * MIB, tmp_path)
    group.enter(77)
    assert (folder / "jobs/cgroup.procs").read_text() == ""
    assert capsys.readouterr().out.count("jobs have no control group") == 1
