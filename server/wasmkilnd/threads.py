"""Threads that wait for disks and stores, and never hold up the end of the daemon.

The standard library's executors are joined when the interpreter ends, so that one read of a disk
that hangs would keep the daemon from ending.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Threads(Executor):
    """Threads that do not keep the daemon from ending while a disk or a store does not answer."""

    def __init__(self, count: int, name: str) -> None:
        self._jobs = SimpleQueue[tuple[Future[Any], Callable[[], Any]]]()
        for number in range(count):
            Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **named: Any) -> Future[T]:
        """Call ``fn`` in a thread."""
        future = Future[T]()
        self._jobs.put((future, partial(fn, *args, **named)))
        return future

    def _work(self) -> None:
        while True:
            future, work = self._jobs.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as failure:
                    future.set_exception(failure)
                except BaseException as panic:  # Of Rust: it would end whoever waits.
                    future.set_exception(RuntimeError(f"{type(panic).__name__}: {panic}"))
            del future, work
