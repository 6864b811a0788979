"""Who gets a worker and when, in a time that tests make pass themselves."""

from __future__ import annotations

import asyncio

import pytest
from wasmkilnd.engines.scheduling.dispatch import Dispatch
from wasmkilnd.engines.scheduling.estimate import Estimate
from wasmkilnd.engines.scheduling.ticket import Ticket
from wasmkilnd.errors import Reason, WasmkilnError, server_draining
from wasmkilnd.model import Abandoned, Limits
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.waiters import Waiter, Waiters

from tests.doubles.notes import Notes

A, B = Waiter("a"), Waiter("b")
WARMING = Waiter("w", background=True)


class Rig:
    """An engine with workers that are but names."""

    def __init__(
        self,
        workers: int = 1,
        length: int = 100,
        abandoned: Abandoned = Abandoned.FINISH,
        second_limit: int = 1,
    ) -> None:
        self.now = 0.0
        self.running: list[Ticket[str]] = []
        self.recorder = Notes()
        self.dispatch = Dispatch[str](
            "engine-1",
            Reloadable(Limits(1, 1, 1, 1, 1, length, 10**9, abandoned)),
            self.recorder,
            clock=lambda: self.now,
            second_limit=second_limit,
        )
        for number in range(workers):
            self.dispatch.offer(f"worker {number}")

    def ask(
        self, waiter: Waiter, size: int = 1000, waiters: Waiters | None = None, second: bool = False
    ) -> asyncio.Task[Ticket[str]]:
        return asyncio.create_task(self._take(waiters or Waiters.of(waiter), size, second))

    async def _take(self, waiters: Waiters, size: int, second: bool) -> Ticket[str]:
        ticket = await self.dispatch.take(waiters, "compile", size, second=second)
        self.running.append(ticket)
        return ticket

    async def pass_time(self, seconds: float) -> None:
        """Let every job that runs end after ``seconds``."""
        self.now += seconds
        for ticket in list(self.running):
            await self.work(ticket, 0.0)

    async def work(self, ticket: Ticket[str], seconds: float) -> None:
        self.now += seconds
        self.running.remove(ticket)
        self.dispatch.done(ticket)
        self.dispatch.offer(ticket.worker)
        await settled()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_free_worker_is_given_at_once() -> None:
    rig = Rig()
    ticket = await rig.ask(A)
    assert ticket.worker == "worker 0"
    assert ticket.queued_s == 0.0
    assert (rig.dispatch.busy, rig.dispatch.idle) == (1, 0)


async def test_a_flood_and_a_single_call_and_warming() -> None:
    rig = Rig()
    await rig.ask(A)
    flood = [rig.ask(A) for _ in range(50)]
    warming = rig.ask(WARMING)
    await settled()
    single = rig.ask(B)
    await settled()
    while not warming.done():
        await rig.pass_time(1.0)
    assert flood[0].result().queued_s == 1.0
    assert single.result().queued_s == 2.0
    assert warming.result().queued_s == 52.0


async def test_a_full_queue_tells_how_long_the_wait_would_really_have_been() -> None:
    rig = Rig(workers=2, length=10)
    for _ in range(2):
        await rig.ask(A)
    await rig.pass_time(3.0)  # It learns what such jobs take.
    for _ in range(2):
        await rig.ask(A)
    waiting = [rig.ask(A) for _ in range(10)]
    await settled()
    with pytest.raises(WasmkilnError) as failure:
        await rig.ask(A)
    promised = failure.value.retry_after_s
    assert failure.value.reason is Reason.COMPILE_QUEUE_FULL
    assert failure.value.metadata["limit"] == "queue"
    while not all(task.done() for task in waiting):
        await rig.pass_time(3.0)
    # It would have been the next.
    assert promised == pytest.approx(waiting[-1].result().queued_s + 3.0, rel=0.2)


async def test_a_caller_pushed_out_by_another_is_told_so() -> None:
    rig = Rig(length=2)
    running = await rig.ask(A)
    flood = [rig.ask(A), rig.ask(A)]
    await settled()
    single = rig.ask(B)
    await settled()
    with pytest.raises(WasmkilnError) as failure:
        await flood[1]
    assert failure.value.reason is Reason.COMPILE_QUEUE_FULL
    assert (failure.value.retry_after_s or 0) > 0
    await rig.work(running, 1.0)
    await rig.work(await flood[0], 1.0)
    await rig.work(await single, 1.0)


async def test_a_wait_is_expected_before_it_begins() -> None:
    rig = Rig()
    assert rig.dispatch.expected_wait_s(A, None) == 0.0
    await rig.work(await rig.ask(A), 4.0)
    running = await rig.ask(A)
    rig.now += 1.0
    assert rig.dispatch.expected_wait_s(A, None) == pytest.approx(3.0)
    waiters = Waiters.of(A)
    waiting = rig.ask(A, waiters=waiters)
    await settled()
    assert rig.dispatch.expected_wait_s(A, None) == pytest.approx(7.0)
    assert rig.dispatch.expected_wait_s(B, None) == pytest.approx(7.0)
    # Who joins what waits already gets it when that gets its ticket.
    assert rig.dispatch.expected_wait_s(B, waiters) == pytest.approx(3.0)
    # A job that is late by a second is expected to take one more.
    rig.now += 4.0
    assert rig.dispatch.expected_wait_s(B, waiters) == pytest.approx(1.0)
    await rig.work(running, 0.0)
    assert rig.dispatch.expected_wait_s(B, waiters) == 0.0  # It runs.
    await rig.work(await waiting, 1.0)


async def test_a_wait_ends_with_the_first_worker_that_is_free() -> None:
    rig = Rig(workers=2)
    rig.dispatch._estimate.learn("compile", 1000, 2.0)
    rig.dispatch._estimate.learn("compile", 5_000_000, 100.0)
    await rig.ask(A, size=5_000_000)
    await rig.ask(A)
    assert rig.dispatch.expected_wait_s(B, None) == pytest.approx(2.0)
    rig.ask(A)
    await settled()
    assert rig.dispatch.expected_wait_s(A, None) == pytest.approx(4.0)
    rig.ask(A, size=5_000_000)
    await settled()
    # 204 seconds of work for two workers, of which one is busy for 100 with the rest.
    assert rig.dispatch.expected_wait_s(A, None) == pytest.approx(102.0)
    rig.dispatch.refuse_waiting(server_draining())


async def test_a_call_that_is_given_up_leaves_the_queue_and_never_gets_a_worker() -> None:
    rig = Rig()
    running = await rig.ask(A)
    waiters = Waiters()
    waiters.join(A)
    gone, next_ = rig.ask(A, waiters=waiters), rig.ask(A)
    await settled()
    waiters.leave(A)
    gone.cancel()
    await settled()
    assert len(rig.dispatch.queue) == 1
    assert rig.recorder.abandonments == ["queued"]
    await rig.work(running, 1.0)
    await rig.work(await next_, 1.0)
    assert (rig.dispatch.idle, rig.dispatch.busy) == (1, 0)


async def test_a_worker_given_in_the_moment_of_giving_up_goes_to_the_next() -> None:
    rig = Rig()
    running = await rig.ask(A)
    gone, next_ = rig.ask(A), rig.ask(A)
    await settled()
    rig.dispatch.done(running)
    rig.dispatch.offer(running.worker)
    gone.cancel()  # Before it could notice.
    ticket = await next_
    await rig.work(ticket, 1.0)
    assert (rig.dispatch.idle, rig.dispatch.busy) == (1, 0)


async def test_a_call_given_up_in_the_same_moment_is_passed_over() -> None:
    rig = Rig()
    running = await rig.ask(A)
    waiters = Waiters()
    waiters.join(A)
    gone, next_ = rig.ask(A, waiters=waiters), rig.ask(A)
    await settled()
    waiters.leave(A)
    gone.cancel()
    rig.dispatch.done(running)
    rig.dispatch.offer(running.worker)  # Before it could leave the queue.
    await rig.work(await next_, 1.0)
    assert (rig.dispatch.idle, rig.dispatch.busy) == (1, 0)


async def test_warming_takes_the_turn_of_who_begins_to_wait_for_it() -> None:
    rig = Rig()
    running = await rig.ask(A)
    waiters = Waiters.of(WARMING)
    warming = rig.ask(WARMING, waiters=waiters)
    calls = [rig.ask(A) for _ in range(5)]
    await settled()
    waiters.join(B)
    await rig.work(running, 1.0)
    await rig.work(calls[0].result(), 1.0)
    assert warming.done()
    await rig.work(warming.result(), 1.0)
    for call in calls[1:]:
        await rig.work(await call, 1.0)


async def test_a_job_whose_worker_died_is_next() -> None:
    rig = Rig()
    ticket = await rig.ask(A)
    others = [rig.ask(B) for _ in range(3)]
    await settled()
    rig.dispatch.lost(ticket)
    again = asyncio.create_task(rig.dispatch.take_again(ticket))
    await settled()
    rig.dispatch.offer("another worker")
    await again
    assert ticket.worker == "another worker"
    await rig.work(ticket, 1.0)
    for other in others:
        await rig.work(await other, 1.0)


async def test_a_worker_that_is_not_needed_any_more_teaches_nothing_and_is_for_the_next() -> None:
    rig = Rig()
    rig.dispatch._estimate.learn("compile", 1000, 2.0)
    drops: list[str] = []
    waiters = Waiters(lambda: drops.append("dropped"))
    waiters.join(A)
    ticket = await rig.ask(A, waiters=waiters)
    next_ = rig.ask(B)
    await settled()
    rig.dispatch.decline(ticket)
    rig.dispatch.offer(ticket.worker)
    await rig.work(await next_, 2.0)
    assert rig.dispatch._estimate.expected_s("compile", 1000) == pytest.approx(2.0)
    assert not drops
    waiters.leave(A)  # It is kept no more, as it would be had it begun.
    assert drops


async def test_who_left_while_a_worker_was_asked_for_is_waited_for_no_more() -> None:
    rig = Rig()
    drops: list[str] = []
    waiters = Waiters(lambda: drops.append("dropped"))
    waiters.join(A)
    ticket = await rig.ask(A, waiters=waiters)
    waiters.leave(A)
    assert not drops
    rig.dispatch.decline(ticket)
    assert drops


async def test_whoever_waits_when_it_ends_is_told() -> None:
    rig = Rig()
    await rig.ask(A)
    waiting = [rig.ask(A), rig.ask(WARMING)]
    await settled()
    rig.dispatch.refuse_waiting(server_draining())
    for task in waiting:
        with pytest.raises(WasmkilnError) as failure:
            await task
        assert failure.value.reason is Reason.SERVER_DRAINING


@pytest.mark.parametrize(
    ("policy", "dropped_alone", "dropped_when_another_waits"),
    [
        (Abandoned.FINISH, False, False),
        (Abandoned.YIELD, False, True),
        (Abandoned.KILL, True, True),
    ],
)
async def test_a_running_job_that_nobody_wants(
    policy: Abandoned, dropped_alone: bool, dropped_when_another_waits: bool
) -> None:
    rig = Rig(abandoned=policy)
    drops: list[str] = []
    waiters = Waiters(lambda: drops.append("dropped"))
    waiters.join(A)
    ticket = await rig.ask(A, waiters=waiters)
    waiters.leave(A)
    assert bool(drops) is dropped_alone
    waiting = rig.ask(B)
    await settled()
    assert bool(drops) is dropped_when_another_waits
    await rig.work(ticket, 1.0)
    await rig.work(await waiting, 1.0)


async def test_a_job_that_is_left_while_another_waits_yields() -> None:
    rig = Rig(abandoned=Abandoned.YIELD)
    drops: list[str] = []
    waiters = Waiters(lambda: drops.append("dropped"))
    waiters.join(A)
    ticket = await rig.ask(A, waiters=waiters)
    waiting = rig.ask(B)
    await settled()
    assert not drops
    waiters.leave(A)
    assert drops
    await rig.work(ticket, 1.0)
    await rig.work(await waiting, 1.0)


@pytest.mark.parametrize("callers", [1, 2, 3])
async def test_each_that_waits_has_one_unwanted_job_ended(callers: int) -> None:
    rig = Rig(workers=2, abandoned=Abandoned.YIELD)
    drops: list[int] = []
    turns = []
    for number in range(2):
        waiters = Waiters(lambda number=number: drops.append(number))  # type: ignore[misc]
        waiters.join(A)
        turns.append(await rig.ask(A, waiters=waiters))
        waiters.leave(A)
    # Their workers are not back yet.
    waiting = [rig.ask(B) for _ in range(callers)]
    await settled()
    assert drops == [0, 1][:callers]
    for ticket in turns:
        await rig.work(ticket, 1.0)
    for call in waiting:
        await rig.work(await call, 1.0)


async def test_a_job_left_later_is_ended_only_for_one_that_still_misses_a_worker() -> None:
    rig = Rig(workers=2, abandoned=Abandoned.YIELD)
    drops: list[int] = []
    each = [Waiters(lambda number=number: drops.append(number)) for number in range(2)]  # type: ignore[misc]
    for waiters in each:
        waiters.join(A)
        await rig.ask(A, waiters=waiters)
    first = rig.ask(B)
    await settled()
    each[0].leave(A)
    each[1].leave(A)
    assert drops == [0]
    second = rig.ask(B)
    await settled()
    assert drops == [0, 1]
    await rig.pass_time(1.0)
    await asyncio.gather(first, second)
    await rig.pass_time(1.0)


async def test_second_opinions_leave_workers_to_others() -> None:
    rig = Rig(workers=4, second_limit=2)
    flood = [rig.ask(A, second=True) for _ in range(5)]
    await settled()
    assert (rig.dispatch.busy, rig.dispatch.idle) == (2, 2)
    first = await rig.ask(A)  # Though second opinions wait before it.
    assert first.queued_s == 0.0
    other = rig.ask(B, second=True)
    await settled()
    await rig.work(flood[0].result(), 1.0)
    assert rig.dispatch.busy == 3
    await rig.work(flood[1].result(), 1.0)
    assert other.done()  # They take turns like any other.
    await rig.work(first, 1.0)
    while not all(task.done() for task in flood):
        await rig.pass_time(1.0)
    await rig.pass_time(1.0)
    assert (rig.dispatch.busy, rig.dispatch.idle) == (0, 4)


async def test_a_second_opinion_that_waits_gets_an_idle_worker_when_one_of_its_like_is_lost() -> (
    None
):
    rig = Rig(workers=2)
    lost, waiting = await rig.ask(A, second=True), rig.ask(A, second=True)
    await settled()
    assert not waiting.done()
    rig.dispatch.lost(lost)
    await rig.work(await waiting, 1.0)


async def test_a_full_queue_refuses_second_opinions_and_tells_their_wait() -> None:
    rig = Rig(workers=2, length=2)
    rig.dispatch._estimate.learn("compile", 1000, 3.0)
    running = await rig.ask(A, second=True)
    waiting = [rig.ask(A, second=True) for _ in range(2)]
    await settled()
    with pytest.raises(WasmkilnError) as failure:
        await rig.ask(A, second=True)
    assert failure.value.reason is Reason.COMPILE_QUEUE_FULL
    assert failure.value.retry_after_s == pytest.approx(9.0)
    assert rig.dispatch.expected_wait_s(A, None, second=True) == pytest.approx(9.0)
    # Others have an idle worker, or pass them.
    assert rig.dispatch.expected_wait_s(A, None) == 0.0
    busy = await rig.ask(B)
    assert rig.dispatch.expected_wait_s(A, None) == pytest.approx(3.0)
    await rig.work(running, 3.0)
    await rig.work(busy, 0.0)
    for task in waiting:
        await rig.work(await task, 3.0)


async def test_no_job_is_ended_for_a_second_opinion_that_may_not_start() -> None:
    rig = Rig(workers=2, abandoned=Abandoned.YIELD)
    drops: list[str] = []
    for _ in range(2):
        waiters = Waiters(lambda: drops.append("dropped"))
        waiters.join(A)
        await rig.ask(A, waiters=waiters)
        waiters.leave(A)
    waiting = [rig.ask(B, second=True) for _ in range(3)]
    await settled()
    assert drops == ["dropped"]
    await rig.work(rig.running[0], 1.0)
    first = await waiting[0]
    assert drops == ["dropped"]
    await rig.pass_time(1.0)
    while not waiting[2].done():
        assert first not in rig.running
        await rig.pass_time(1.0)
    await rig.pass_time(1.0)
    assert (rig.dispatch.busy, rig.dispatch.idle) == (0, 2)


def test_jobs_are_expected_to_take_what_their_like_took() -> None:
    estimate = Estimate()
    assert 0 < estimate.expected_s("compile", 10) < 0.1
    assert 1 < estimate.expected_s("compile", 2_500_000) < 3
    for _ in range(30):
        estimate.learn("compile", 3_000_000, 30.0)
        estimate.learn("compile", 100, 0.004)
        estimate.learn("validate", 3_000_000, 0.1)
    assert estimate.expected_s("compile", 2_900_000) == pytest.approx(30.0)
    assert estimate.expected_s("compile", 90) == pytest.approx(0.004)
    assert estimate.expected_s("validate", 2_900_000) == pytest.approx(0.1)
    # One that nothing is known of takes after the nearest: in proportion, if that is larger.
    assert estimate.expected_s("compile", 40_000) == pytest.approx(30.0 / 4**3)
    estimate.learn("compile", 100, 0.008)
    assert 0.004 < estimate.expected_s("compile", 100) < 0.008


def test_small_jobs_say_little_about_large_ones() -> None:
    estimate = Estimate()
    # Most of these is what any job takes, and no machine is as slow as they make it look.
    estimate.learn("compile", 40, 0.08)
    assert 0.5 < estimate.expected_s("compile", 1_200_000) < 10


def test_a_small_module_that_takes_long_says_little_about_large_ones() -> None:
    """Or whoever sends one could have the daemon refuse everybody else's."""
    estimate = Estimate()
    estimate.learn("compile", 8_000, 20.0)
    assert estimate.expected_s("compile", 8_000) == pytest.approx(20.0)
    assert 20.0 < estimate.expected_s("compile", 4_000_000) < 25.0


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


async def test_who_needs_no_worker_any_more_leaves_the_queue() -> None:
    rig, elsewhere, waiters = Rig(), Elsewhere(), Waiters.of(A)
    running = await rig.ask(B)
    waiting = asyncio.create_task(rig.dispatch.take_unless(waiters, "compile", 1, elsewhere))
    behind = rig.ask(A)
    await settled()
    assert (len(rig.dispatch.queue), elsewhere.watched) == (2, 1)
    elsewhere.stored.set()
    assert await waiting is None
    assert len(rig.dispatch.queue) == 1
    await rig.work(running, 1.0)
    assert (await behind).worker == "worker 0"
    assert rig.recorder.abandonments == []


async def test_who_has_a_worker_keeps_it_and_nobody_watches_any_more() -> None:
    rig, elsewhere = Rig(), Elsewhere()
    at_once = await rig.dispatch.take_unless(Waiters.of(A), "compile", 1, elsewhere)
    assert at_once
    assert elsewhere.watched == 0
    waiting = asyncio.create_task(rig.dispatch.take_unless(Waiters.of(A), "compile", 1, elsewhere))
    await settled()
    rig.dispatch.done(at_once)
    rig.dispatch.offer(at_once.worker)
    elsewhere.stored.set()  # In the same moment, and too late.
    later = await waiting
    assert later
    assert later.worker == "worker 0"
    await settled()
    assert elsewhere.watched == 0


async def test_in_the_moment_in_which_it_is_stored_the_worker_goes_to_the_next() -> None:
    rig, elsewhere = Rig(), Elsewhere()
    running = await rig.ask(B)
    waiting = asyncio.create_task(rig.dispatch.take_unless(Waiters.of(A), "compile", 1, elsewhere))
    behind = rig.ask(A)
    await settled()
    elsewhere.stored.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()  # The watch has ended, and who waits has not heard of it.
    await rig.work(running, 1.0)
    assert await waiting is None
    assert (await behind).worker == "worker 0"
    assert (rig.dispatch.busy, rig.dispatch.idle) == (1, 0)


@pytest.mark.parametrize("steps", range(8))
async def test_who_is_cancelled_at_any_moment_keeps_no_worker(steps: int) -> None:
    rig, elsewhere = Rig(), Elsewhere()
    running = await rig.ask(B)
    waiting = asyncio.create_task(rig.dispatch.take_unless(Waiters.of(A), "compile", 1, elsewhere))
    await settled()
    rig.running.remove(running)
    rig.dispatch.done(running)
    rig.dispatch.offer(running.worker)
    elsewhere.stored.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    if not waiting.cancelled() and (ticket := waiting.result()):
        rig.dispatch.decline(ticket)
        rig.dispatch.offer(ticket.worker)
    await settled()
    assert (rig.dispatch.busy, rig.dispatch.idle) == (0, 1)
    assert elsewhere.watched == 0


async def test_a_watch_that_fails_is_no_silence() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    rig = Rig()
    await rig.ask(B)
    with pytest.raises(ZeroDivisionError):
        await rig.dispatch.take_unless(Waiters.of(A), "compile", 1, broken)
    assert len(rig.dispatch.queue) == 0
