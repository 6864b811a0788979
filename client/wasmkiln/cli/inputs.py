"""Several inputs in one run: one that fails does not stop the others; several at once."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from wasmkiln.cli.app import Exit, Session, error_document, exit_for
from wasmkiln.cli.text import table
from wasmkiln.shared import MAX_MODULE_BYTES

T = TypeVar("T")
R = TypeVar("R")

_LOOK_S = 0.25


def read_file(file: str, limit_bytes: int = MAX_MODULE_BYTES) -> bytes:
    """Return the bytes of a file, a pipe, or standard input as "-". /dev/zero has no end."""
    with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as opened:
        content: bytes = opened.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(f"{file} has more than {limit_bytes:,} bytes")
    return content


def digest_of(source: str) -> str:
    """Return the SHA-256 of a file's bytes; a digest as it is, unless a file has that name."""
    from wasmkiln._source import identify

    return identify(source)[0]


@dataclass(frozen=True)
class Done:
    """What became of one input: a result or an error; neither if it was not tried."""

    source: str
    result: Any = None
    error: Exception | None = None


def attempt(source: str, work: Callable[[], Any]) -> Done:
    """Do the work for one input. Keep a WasmkilnError or OSError instead of raising it."""
    from wasmkiln import WasmkilnError

    try:
        return Done(source, result=work())
    except (WasmkilnError, OSError) as error:
        return Done(source, error=error)


def attempt_all(sources: Iterable[str], work: Callable[[str], Any]) -> list[Done]:
    """Do the work for each input in turn. Stop early only when no daemon listens."""
    done: list[Done] = []
    for source in sources:
        done.append(attempt(source, partial(work, source)))
        if (error := done[-1].error) and exit_for(error) is Exit.UNREACHABLE:
            break
    return done


def each(
    session: Session, name: str, sources: Iterable[str], work: Callable[[str], Any], columns: str
) -> Exit:
    """Do the work for each input in turn, and write what came of it: a list of documents.

    Return the exit code of the first failure, or OK.
    """
    done = attempt_all(sources, work)
    rows = results_of(done)
    session.emit({name: rows, "errors": errors_in(done)}, table(rows, columns))
    return report_failures(session, done)


def results_of(done: Iterable[Done]) -> list[Any]:
    """Return the results of what had one."""
    return [item.result for item in done if item.result is not None]


def errors_in(done: Iterable[Done]) -> list[dict[str, Any]]:
    """Return the failures as JSON objects."""
    return [error_document(item.error, item.source) for item in done if item.error is not None]


def report_failures(session: Session, done: Iterable[Done]) -> Exit:
    """Write every failure to stderr. Return the exit code of the first, or OK."""
    failed = [(item.error, item.source) for item in done if item.error is not None]
    for error, source in failed:
        session.report(error, source)
    return exit_for(failed[0][0]) if failed else Exit.OK


def in_parallel(jobs: int, items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """Return what `work` returns for each item, in their order, with many threads at once.

    Raise what it raises. Then, and on an interrupt, what has not begun is dropped, and what has
    is left to itself: it ends with the process at last.
    """
    from concurrent.futures import Future, wait  # and logging, which few commands need

    futures = [Future[R]() for _ in items]
    waiting = deque(zip(futures, items, strict=True))

    def run() -> None:
        with suppress(IndexError):  # nothing waits any more
            while True:
                future, item = waiting.popleft()
                try:
                    future.set_result(work(item))
                except BaseException as error:
                    future.set_exception(error)

    for _ in range(min(jobs, len(items))):
        Thread(target=run, daemon=True).start()
    try:
        for future in futures:
            # Not without a limit: an interrupt that comes just before the wait begins is not
            # seen until it ends.
            while not wait([future], _LOOK_S).done:
                pass
    finally:
        waiting.clear()
    return [future.result() for future in futures]
