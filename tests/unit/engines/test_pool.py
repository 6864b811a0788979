"""Who gets a worker and when, whom a full queue refuses, and what is dropped."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.engines.job import JobOrder, JobReport
from wasmkilnd.engines.memory import Memory
from wasmkilnd.engines.pool import Job, Unless, WorkerPool
from wasmkilnd.engines.process import Worker, WorkerDied
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import Limits, Reloadable
from wasmkilnd.waits.flights import Waiter, Waiters

from tests.doubles.notes import Notes
from tests.unit.engines.limits import LIMITS

A, B, C = Waiter("a"), Waiter("b"), Waiter("c")
WARMING = Waiter("w", background=True)
OWN = Waiter(background=True, last=True)


@dataclass(eq=False)
class FakeProcess:
    """Lives until its worker is killed."""

    returncode: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        await self.ended.wait()


@dataclass(eq=False)
class FakeWorker:
    """Runs each job until a test ends it."""

    began: list[JobOrder]
    job: asyncio.Future[JobReport] | None = None
    process: FakeProcess = field(default_factory=FakeProcess)
    pid: int = 1

    async def run(self, order: JobOrder) -> JobReport:
        self.began.append(order)
        self.job = asyncio.get_running_loop().create_future()
        try:
            return await self.job
        except (WorkerDied, asyncio.CancelledError):
            await self.kill()
            raise

    async def kill(self) -> None:
        self.process.returncode = -9
        self.process.ended.set()


class Rig:
    """An engine with workers whose jobs end when a test says so."""

    def __init__(self, workers: int = 1, length: int = 100, limit_bytes: int = 10**9) -> None:
        self.metrics = Notes()
        self.began: list[JobOrder] = []
        self.limits = Reloadable(Limits(1, 1, 1, 1, 1, length, limit_bytes))
        self.pool = WorkerPool(
            "engine-1",
            self.start,
            size=workers,
            limits=self.limits,
            metrics=self.metrics,
            memory=Memory(self.limits),
        )
        self.workers = [self.new() for _ in range(workers)]

    async def start(self) -> Worker:
        raise NotImplementedError

    def new(self) -> FakeWorker:
        worker = FakeWorker(self.began)
        self.pool.offer(cast(Worker, worker))
        return worker

    def ask(
        self, *callers: Waiter, size: int = 1, waiters: Waiters | None = None
    ) -> asyncio.Task[JobReport]:
        """Ask for a worker for all ``callers``."""
        waiters = waiters or Waiters.of(callers[0])
        for caller in callers[1:]:
            waiters.waiting[caller] += 1
        return asyncio.create_task(self.pool.run(Job(order(size), waiters)))

    async def end(self, outcome: JobReport | Exception | None = None) -> None:
        """End the job of the first busy worker."""
        worker = next(each for each in self.workers if each.job and not each.job.done())
        assert worker.job
        if isinstance(outcome, Exception):
            worker.job.set_exception(outcome)
        else:
            worker.job.set_result(outcome or JobReport(elapsed_s=1.0, cpu_s=0.5))
        await settled()

    async def order_of(self, tasks: list[asyncio.Task[JobReport]]) -> list[asyncio.Task[JobReport]]:
        """End all jobs; return in which order they ended."""
        ended: list[asyncio.Task[JobReport]] = []
        for task in tasks:
            task.add_done_callback(ended.append)
        while not all(task.done() for task in tasks):
            await self.end()
        return ended


def order(size: int = 1) -> JobOrder:
    return JobOrder({"op": "compile"}, LIMITS, bytes(size))


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def refusal(task: asyncio.Task[Any]) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as failure:
        await task
    return failure.value


# --- A full queue --------------------------------------------------------------------------


async def busy(rig: Rig) -> None:
    rig.ask(Waiter("busy"))
    await settled()


async def test_background_work_makes_room_first_and_the_daemons_own_before_that() -> None:
    rig = Rig(length=2)
    await busy(rig)
    own, warming = rig.ask(OWN), rig.ask(WARMING)
    await settled()
    second = rig.ask(WARMING)
    await refusal(own)
    rig.ask(A)
    await refusal(second)
    rig.ask(A)
    await refusal(warming)
    await refusal(rig.ask(OWN))
    await refusal(rig.ask(WARMING))


async def test_work_that_others_want_too_is_not_given_up_for_a_flood() -> None:
    rig = Rig(length=4)
    await busy(rig)
    flood = [rig.ask(A) for _ in range(3)]
    shared = rig.ask(A, B)
    await settled()
    rig.ask(C)
    await refusal(flood[2])
    assert not shared.done()


async def test_a_job_that_goes_on_for_nobody_goes_last_and_makes_room_first() -> None:
    rig = Rig(length=1)
    await busy(rig)
    nobodys = rig.ask(waiters=Waiters())
    await settled()
    await refusal(rig.ask(waiters=Waiters()))
    rig.ask(A)
    await refusal(nobodys)


async def test_jobs_that_run_again_keep_no_other_caller_out() -> None:
    rig = Rig(workers=2, length=2)
    again = [rig.ask(A) for _ in range(2)]
    await settled()
    for _ in again:
        await rig.end(WorkerDied("it is gone"))
    assert rig.pool.waiting == 2
    other = rig.ask(B)
    await settled()
    assert not other.done()
    [gone] = [each for each in again if each.done()]
    assert (await refusal(gone)).reason is Reason.COMPILE_QUEUE_FULL


async def test_bytes_are_bounded_too_and_whoever_holds_most_yields() -> None:
    rig = Rig(limit_bytes=100)
    await busy(rig)
    big = [rig.ask(A, size=40), rig.ask(A, size=40)]
    rig.ask(B, size=10)
    await settled()
    rig.ask(B, size=20)
    await refusal(big[1])
    assert rig.pool.usage().queued_bytes == 70
    alone = Rig(limit_bytes=10)
    await busy(alone)
    task = alone.ask(A, size=1000)
    await settled()
    assert not task.done()


# --- What needs no worker any more ---------------------------------------------------------


class Elsewhere:
    """Another daemon, which stores the artifact when a test says so."""

    def __init__(self) -> None:
        self.stored = asyncio.Event()
        self.watched = 0

    async def __call__(self) -> None:
        self.watched += 1
        try:
            await self.stored.wait()
        finally:
            self.watched -= 1


def ask(rig: Rig, unless: Unless) -> asyncio.Task[JobReport]:
    return asyncio.create_task(rig.pool.run(Job(order(), Waiters.of(A)), unless=unless))


@pytest.mark.parametrize("steps", range(8))
async def test_who_is_cancelled_at_any_moment_keeps_no_worker(steps: int) -> None:
    rig, elsewhere = Rig(), Elsewhere()
    first, waiting = ask(rig, elsewhere), ask(rig, elsewhere)
    await settled()
    assert rig.workers[0].job
    rig.workers[0].job.set_result(JobReport())
    elsewhere.stored.set()  # In the same moment.
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(first, waiting, return_exceptions=True)
    await settled()
    assert (rig.pool.busy, rig.pool.waiting) == (0, 0)
    # Alive, unless its job had begun.
    assert rig.pool.alive == (len(rig.began) == 1)
    assert elsewhere.watched == 0


@pytest.mark.parametrize("steps", range(8))
async def test_a_job_that_is_ended_at_any_moment_fails_for_that_and_keeps_no_worker(
    steps: int,
) -> None:
    rig, elsewhere = Rig(), Elsewhere()
    first, waiting = ask(rig, elsewhere), ask(rig, elsewhere)
    await settled()
    assert [each.task for each in rig.pool.jobs] == [first, waiting]
    assert rig.workers[0].job
    rig.workers[0].job.set_result(JobReport())
    for _ in range(steps):
        await asyncio.sleep(0)
    [job] = [each for each in rig.pool.jobs if each.task is waiting]
    for _ in range(2):  # The second one finds it in the list no more.
        job.end()
    assert waiting not in [each.task for each in rig.pool.jobs]
    assert (await refusal(waiting)).reason is Reason.JOB_ENDED
    assert waiting.cancelling() == 0
    await settled()
    assert first.done()
    assert (rig.pool.busy, rig.pool.waiting) == (0, 0)
    # Alive, unless its job had begun.
    assert rig.pool.alive == (len(rig.began) == 1)
    assert elsewhere.watched == 0


# --- Whatever happens -----------------------------------------------------------------------

callers = st.builds(Waiter, st.sampled_from("abcd"), st.booleans())
steps: st.SearchStrategy[tuple[str, list[Waiter], int]] = st.one_of(
    st.tuples(st.just("ask"), st.lists(callers, min_size=1, max_size=3), st.integers(0, 50)),
    st.tuples(st.just("end"), st.just([]), st.just(0)),
    st.tuples(st.just("cancel"), st.just([]), st.integers(0, 50)),
    st.tuples(st.just("stop"), st.just([]), st.integers(0, 50)),
)


@given(st.lists(steps, max_size=60))
def test_whatever_happens_it_counts_exactly_and_loses_nothing(
    script: list[tuple[str, list[Waiter], int]],
) -> None:
    async def play() -> None:
        rig, tasks = Rig(length=6, limit_bytes=100), list[asyncio.Task[Any]]()
        for what, wanted, number in script:
            left = [task for task in tasks if not task.done()]
            if what == "ask":
                tasks.append(rig.ask(*wanted, size=number))
            elif what == "end" and rig.pool.busy:
                await rig.end()
            elif what == "cancel" and left:
                left[number % len(left)].cancel()
            elif what == "stop" and (jobs := rig.pool.jobs):
                jobs[number % len(jobs)].end()
            await settled()
            if not rig.pool.alive:  # Its job was cancelled, or ended by an operator.
                rig.workers.append(rig.new())
                await settled()
            assert rig.pool.waiting <= 6
            assert rig.pool.usage().queued_bytes <= 100 or rig.pool.waiting == 1
            assert rig.pool.busy <= 1
            assert not rig.pool.waiting or rig.pool.busy == 1
        while rig.pool.busy:
            await rig.end()
        assert all(task.done() for task in tasks)
        assert (rig.pool.waiting, rig.pool.alive) == (0, 1)
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(play())


@given(st.lists(st.sampled_from("abc"), max_size=40), st.sampled_from("abc"))
def test_nobody_waits_for_more_than_one_job_of_each_other_caller_per_turn(
    names: list[str], late: str
) -> None:
    async def play() -> None:
        rig = Rig()
        tasks = [rig.ask(Waiter(name)) for name in names]
        await settled()
        one = rig.ask(Waiter(late))
        await settled()
        mine = names.count(late)
        others = {name for name in names if name != late}
        before = (await rig.order_of([*tasks, one])).index(one)
        assert before <= 1 + mine + (mine + 1) * len(others)

    asyncio.run(play())
