"""Threads that wait for disks and stores, and never hold up the end of the daemon.

The standard library's executors are joined when the interpreter ends, so that one read of a disk
that hangs would keep the daemon from ending. So whatever touches a disk runs in ``Threads``:
``on_disk`` for the files of the state directory and of settings. ``asyncio.to_thread`` is for work
that waits for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

T = TypeVar("T")

_PATIENCE_S = 2.0  # How long jobs under way may delay the end of the daemon.


class Threads(Executor):
    """Threads that do not keep the daemon from ending while a disk or a store does not answer."""

    def __init__(self, count: int, name: str) -> None:
        """Start at most ``count`` threads, each with a job for which no other is free.

        Where threads take turns, each finds its memory in no cache: that costs 0.1 ms a job.
        """
        self._jobs = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()
        self._names = [f"{name}-{number}" for number in range(count)]
        # No lock of Python's: a finalizer may submit while its thread is in here.
        self._count, self._free = count, SimpleQueue[None]()

    def submit(self, fn: Callable[..., T], /, *args: Any, **named: Any) -> Future[T]:
        """Call ``fn`` in a thread."""
        future = Future[T]()
        self._jobs.put((future, partial(fn, *args, **named)))
        try:
            self._free.get_nowait()
        except Empty:
            with suppress(IndexError):
                self._start(self._names.pop())
        return future

    def _start(self, name: str) -> None:
        try:
            Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:  # There can be no more threads now: the others get to it.
            self._names.append(name)
            if len(self._names) == self._count:
                raise

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """End each thread after the jobs that wait, which are dropped with ``cancel_futures``.

        Wait for none.
        """
        with suppress(Empty):
            while cancel_futures and (job := self._jobs.get_nowait()):
                job[0].cancel()
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self) -> None:
        while job := self._jobs.get():
            future, work = job
            end: Callable[[], object] = future.done
            if future.set_running_or_notify_cancel():
                try:
                    end = partial(future.set_result, work())
                except Exception as failure:
                    end = partial(future.set_exception, failure)
                except BaseException as panic:  # Of Rust: it would end whoever waits.
                    end = partial(future.set_exception, RuntimeError(repr(panic)))
            self._free.put(None)  # First: who hears of the end may have the next job.
            end()
            del job, future, work, end


class Jobs:
    """Jobs of threads that callers wait for, or leave behind. For one event loop."""

    def __init__(self) -> None:
        self._under_way = set[Future[Any]]()

    def add(self, job: Future[T]) -> Future[T]:
        """Return what a caller waits for with ``finished``."""
        self._under_way.add(job)
        job.add_done_callback(self._under_way.discard)
        return job

    async def end(self) -> None:
        """Give jobs under way a moment to end."""
        if jobs := [*self._under_way]:
            await asyncio.to_thread(wait, jobs, _PATIENCE_S)


async def finished(job: Future[Any], until_s: Callable[[], float]) -> bool:
    """Wait for a job until ``until_s()``, which may change; return whether it is done.

    Its thread wakes the caller: to wrap the future takes longer than to wait for it.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    tell = partial(loop.call_soon_threadsafe, ended.set_result, None)
    job.add_done_callback(lambda _: loop.is_closed() or tell())
    while not job.done():
        if (left_s := until_s() - time.monotonic()) <= 0:
            return False
        await wait_at_most(ended, left_s)
    return True


async def wait_at_most(future: asyncio.Future[Any], seconds: float) -> None:
    """Wait for a future, which others may wait for too, for at most ``seconds``.

    A caller that is cancelled does not cancel it. It is ``asyncio.wait`` without sets of futures:
    every hit below memory waits twice, and took 5 % longer.
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(seconds, wake)
    future.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        future.remove_done_callback(wake)


DISK: Final = Threads(8, "wasmkiln-disk")


async def on_disk(work: Callable[..., T], /, *args: Any, **named: Any) -> T:
    """Return what ``work`` returns, which may wait for a disk. Once cancelled, leave it behind."""
    return await asyncio.wrap_future(DISK.submit(work, *args, **named))
