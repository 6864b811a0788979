"""Who gets a worker and when, whom a full queue refuses, and what is dropped."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd import errors
from wasmkilnd.engines.pool import Job, Neighbours, Unless, WorkerPool
from wasmkilnd.engines.process import JobNotSetUp, JobOrder, JobReport, Worker, WorkerDied
from wasmkilnd.errors import Fault, Reason, WasmkilnError
from wasmkilnd.flights import Waiter, Waiters
from wasmkilnd.model import Limits, Reloadable

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
            "engine-1", self.start, size=workers, limits=self.limits, metrics=self.metrics
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


# --- Turns ---------------------------------------------------------------------------------


async def test_a_free_worker_is_given_at_once() -> None:
    rig, job = Rig(), Job(order())
    task = asyncio.create_task(rig.pool.run(job))
    await settled()
    assert (rig.pool.busy, rig.pool.alive, rig.pool.waiting) == (1, 1, 0)
    await rig.end()
    assert not (await task).needless
    assert job.queued_s is not None
    assert job.queued_s < 1
    assert rig.pool.busy == 0


async def test_one_caller_is_served_in_its_own_order() -> None:
    rig = Rig()
    tasks = [rig.ask(A) for _ in range(5)]
    await settled()
    assert await rig.order_of(tasks) == tasks


async def test_a_flood_keeps_another_waiting_for_a_job_or_two() -> None:
    rig = Rig()
    flood = [rig.ask(A) for _ in range(50)]
    await settled()
    single = rig.ask(B)
    await settled()
    assert rig.pool.usage().queued_callers == 2
    assert (await rig.order_of([*flood, single])).index(single) <= 2


async def test_callers_take_turns_and_one_that_comes_back_does_not_jump_ahead() -> None:
    rig = Rig()
    running = rig.ask(C)
    await settled()
    a, b = [rig.ask(A) for _ in range(2)], [rig.ask(B) for _ in range(3)]
    await settled()
    await rig.end()  # The turn of the first of A.
    a.append(rig.ask(A))
    await settled()
    assert await rig.order_of([*a, *b]) == [a[0], b[0], a[1], b[1], a[2], b[2]]
    await running


async def test_background_work_waits_for_everybody_and_the_daemons_own_for_that() -> None:
    rig = Rig()
    running = rig.ask(A)
    await settled()
    own, warming = [rig.ask(OWN)], [rig.ask(WARMING) for _ in range(3)]
    calls = [rig.ask(A), rig.ask(B)]
    await settled()
    assert rig.pool.usage().queued_in_background == 4
    assert await rig.order_of([running, *own, *warming, *calls]) == [
        running, *calls, *warming, *own
    ]  # fmt: skip


async def test_a_job_takes_the_turn_of_who_joins_it() -> None:
    rig = Rig()
    running = rig.ask(A)
    await settled()
    waiters = Waiters.of(WARMING)
    warming, calls = rig.ask(WARMING, waiters=waiters), [rig.ask(A) for _ in range(5)]
    await settled()
    waiters.waiting[B] += 1
    assert rig.pool.usage().queued_in_background == 0
    assert (await rig.order_of([running, *calls, warming])).index(warming) <= 2


async def test_a_line_passes_over_jobs_that_have_started() -> None:
    rig = Rig()
    running = rig.ask(C)
    await settled()
    shared, a, b = rig.ask(A, B), rig.ask(A), rig.ask(B)
    await settled()
    assert await rig.order_of([running, shared, a, b]) == [running, shared, b, a]


# --- A full queue --------------------------------------------------------------------------


async def busy(rig: Rig) -> None:
    rig.ask(Waiter("busy"))
    await settled()


async def test_a_full_queue_refuses_a_caller_that_holds_most_of_it() -> None:
    rig = Rig(length=3)
    await busy(rig)
    for _ in range(3):
        rig.ask(A)
    await settled()
    failure = await refusal(rig.ask(A))
    assert failure.reason is Reason.COMPILE_QUEUE_FULL
    assert (failure.metadata["limit"], failure.metadata["waiting"]) == ("queue", "3")
    assert failure.retry_after_s == pytest.approx(4 * 0.5)
    assert rig.pool.waiting == 3


async def test_the_wait_is_told_by_the_mean_of_recent_jobs() -> None:
    rig = Rig(workers=2)
    assert rig.pool.usage().expected_wait_s == 0
    for _ in range(50):
        task = rig.ask(A)
        await settled()
        await rig.end(JobReport(elapsed_s=4.0))
        await task
    for _ in range(4):
        rig.ask(A)
    await settled()
    assert rig.pool.usage().expected_wait_s == pytest.approx(3 * 4.0 / 2, rel=0.01)


async def test_a_full_queue_makes_room_for_a_caller_that_holds_less() -> None:
    rig = Rig(length=4)
    await busy(rig)
    flood = [rig.ask(A) for _ in range(4)]
    await settled()
    others = [rig.ask(B), rig.ask(B)]
    await settled()
    for gone in (flood[3], flood[2]):
        assert (await refusal(gone)).reason is Reason.COMPILE_QUEUE_FULL
    # Now each has a half: nobody pushes anybody out any more.
    assert (await refusal(rig.ask(B))).reason is Reason.COMPILE_QUEUE_FULL
    assert not any(task.done() for task in (*flood[:2], *others))


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


async def test_a_job_that_somebody_wants_in_the_background_too_does_not_go_sooner() -> None:
    rig = Rig(length=4)
    await busy(rig)
    flood = [rig.ask(A) for _ in range(3)]
    shared = rig.ask(B, Waiter("a", background=True))
    await settled()
    await refusal(rig.ask(A))
    rig.ask(C)
    await refusal(flood[2])
    assert not shared.done()


async def test_a_place_is_filled_whatever_keeps_a_worker_from_starting() -> None:
    rig, started = Rig(workers=0), list[FakeWorker]()
    failures = [RuntimeError("can't start new thread")]

    async def start() -> Worker:
        if started and failures:
            raise failures.pop()
        started.append(FakeWorker(rig.began))
        return cast(Worker, started[-1])

    pool = WorkerPool("engine-1", start, size=1, limits=rig.limits, metrics=rig.metrics)
    await pool.start()
    await settled()
    await started[0].kill()
    async with asyncio.timeout(10):
        while not pool.why_no_worker:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        assert pool.why_no_worker == "can't start new thread"
        while not pool.alive:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not pool.why_no_worker
    assert rig.metrics.replaced == ["engine-1"]
    await pool.close()


async def test_a_job_that_goes_on_for_nobody_goes_last_and_makes_room_first() -> None:
    rig = Rig(length=1)
    await busy(rig)
    nobodys = rig.ask(waiters=Waiters())
    await settled()
    await refusal(rig.ask(waiters=Waiters()))
    rig.ask(A)
    await refusal(nobodys)


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


# --- What ends early, and what does not -----------------------------------------------------


async def test_a_job_that_is_given_up_leaves_the_queue_and_never_gets_a_worker() -> None:
    rig = Rig()
    await busy(rig)
    waiters = Waiters.of(A)
    gone, after = rig.ask(A, waiters=waiters), rig.ask(A)
    await settled()
    waiters.leave(A)
    gone.cancel()
    await settled()
    assert rig.pool.waiting == 1
    assert rig.metrics.abandonments == ["queued"]
    await rig.end()
    await rig.end()
    await after
    assert len(rig.began) == 2


@pytest.mark.parametrize("first", ["cancel", "end"])
async def test_a_worker_given_in_the_moment_of_giving_up_goes_to_the_next(first: str) -> None:
    rig = Rig()
    await busy(rig)
    gone, after = rig.ask(A), rig.ask(A)
    await settled()
    assert rig.workers[0].job
    if first == "cancel":
        gone.cancel()
    rig.workers[0].job.set_result(JobReport())
    await asyncio.sleep(0)
    gone.cancel()
    await settled()
    await rig.end()
    if not after.done():
        await rig.end()
    await after
    assert (rig.pool.busy, rig.pool.alive) == (0, 1)


async def test_a_job_that_has_begun_is_kept_and_dies_with_its_flight() -> None:
    rig, drops = Rig(), list[str]()
    waiters = Waiters.of(A)
    waiters.drop = lambda: drops.append("dropped")
    task = rig.ask(A, waiters=waiters)
    await settled()
    waiters.leave(A)
    assert not drops
    task.cancel()
    await settled()
    assert (rig.pool.busy, rig.pool.alive) == (0, 0)  # A keeper replaces its worker.


async def test_a_worker_that_is_not_needed_after_all_goes_to_the_next() -> None:
    rig, drops, needed = Rig(), list[str](), asyncio.Future[bool]()
    waiters = Waiters.of(A)
    waiters.drop = lambda: drops.append("dropped")

    async def ready(_: float) -> bool:
        return await needed

    job = asyncio.create_task(rig.pool.run(Job(order(), waiters), ready=ready))
    await settled()
    waiters.leave(A)
    after = rig.ask(B)
    await settled()
    assert not drops
    needed.set_result(False)
    assert (await job).needless
    assert drops == ["dropped"]
    await settled()
    await rig.end()
    await after
    assert len(rig.began) == 1


async def test_whoever_waits_when_it_ends_is_told() -> None:
    rig = Rig()
    await busy(rig)
    waiting = [rig.ask(A), rig.ask(WARMING)]
    await settled()
    await rig.pool.close()
    for task in waiting:
        assert (await refusal(task)).reason is Reason.SERVER_DRAINING
    assert (await refusal(rig.ask(A))).reason is Reason.SERVER_DRAINING


async def test_a_job_whose_worker_died_is_next_and_is_tried_twice() -> None:
    rig = Rig()
    task = rig.ask(A)
    await settled()
    others = [rig.ask(B) for _ in range(3)]
    await settled()
    await rig.end(WorkerDied("gone"))
    assert rig.pool.alive == 0
    rig.workers.append(rig.new())
    await settled()
    assert rig.pool.busy == 1
    await rig.end(WorkerDied("gone"))
    failure = await refusal(task)
    assert (failure.reason, failure.fault) == (Reason.COMPILER_CRASHED, Fault.NONE)
    rig.workers.append(rig.new())
    await settled()
    await rig.order_of(others)


async def test_a_job_that_cannot_be_set_up_is_tried_on_one_worker_more_than_there_are() -> None:
    rig = Rig(workers=2)
    task = rig.ask(A)
    await settled()
    for _ in range(3):
        await rig.end(JobNotSetUp("no"))
        rig.workers.append(rig.new())
        await settled()
    assert (await refusal(task)).reason is Reason.WORKER_UNAVAILABLE
    assert len(rig.began) == 3


async def test_without_descriptors_the_worker_stays() -> None:
    rig = Rig()
    task = rig.ask(A)
    await settled()
    await rig.end(errors.out_of_descriptors())
    assert (await refusal(task)).metadata["limit"] == "descriptors"
    assert (rig.pool.busy, rig.pool.alive) == (0, 1)


async def test_a_job_knows_whether_it_ran_alone() -> None:
    neighbours = Neighbours()

    async def job(ends: asyncio.Event | None = None) -> JobReport:
        await (ends.wait() if ends else asyncio.sleep(0.05))
        return JobReport()

    assert (await neighbours.run(job())).alone
    ends = asyncio.Event()
    beside = asyncio.create_task(neighbours.run(job(ends)))
    await asyncio.sleep(0)
    assert not (await neighbours.run(job())).alone
    await asyncio.sleep(0.05)
    ends.set()
    assert not (await beside).alone


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


async def test_who_needs_no_worker_any_more_leaves_the_queue() -> None:
    rig, elsewhere = Rig(), Elsewhere()
    await busy(rig)
    waiting = ask(rig, elsewhere)
    behind = rig.ask(A)
    await settled()
    assert (rig.pool.waiting, elsewhere.watched) == (2, 1)
    elsewhere.stored.set()
    assert (await waiting).needless
    assert rig.pool.waiting == 1
    await rig.end()
    await rig.end()
    await behind
    assert rig.metrics.abandonments == []


async def test_who_has_a_worker_keeps_it_and_nobody_watches_any_more() -> None:
    rig, elsewhere = Rig(), Elsewhere()
    at_once, waiting = ask(rig, elsewhere), ask(rig, elsewhere)
    await settled()
    assert elsewhere.watched == 1
    await rig.end()
    assert elsewhere.watched == 0
    elsewhere.stored.set()  # Too late.
    await rig.end()
    assert not (await at_once).needless
    assert not (await waiting).needless


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


async def test_a_watch_that_fails_is_no_silence() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    rig = Rig()
    await busy(rig)
    waiting = ask(rig, broken)
    with pytest.raises(ZeroDivisionError):
        await waiting
    assert rig.pool.waiting == 0


# --- Whatever happens -----------------------------------------------------------------------

callers = st.builds(Waiter, st.sampled_from("abcd"), st.booleans())
steps: st.SearchStrategy[tuple[str, list[Waiter], int]] = st.one_of(
    st.tuples(st.just("ask"), st.lists(callers, min_size=1, max_size=3), st.integers(0, 50)),
    st.tuples(st.just("end"), st.just([]), st.just(0)),
    st.tuples(st.just("cancel"), st.just([]), st.integers(0, 50)),
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
            await settled()
            if not rig.pool.alive:  # Its job was cancelled.
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
