"""Work in several threads at once, which an interrupt ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")
R = TypeVar("R")

_LOOK_S = 0.25


def in_parallel(jobs: int, items: Iterable[T], work: Callable[[T], R]) -> list[R]:
    """Return what `work` returns for each item, in their order.

    On an interrupt, drop what has not begun; whoever closes what `work` waits for ends the rest.
    """
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="wasmkiln")
    try:
        results = []
        for future in [pool.submit(work, item) for item in items]:
            # Not without a limit: an interrupt that comes just before the wait begins is not
            # seen until it ends, and a call may take as long as its daemon likes.
            while True:
                try:
                    results.append(future.result(_LOOK_S))
                    break
                except TimeoutError:
                    if future.done():
                        raise
        return results
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
