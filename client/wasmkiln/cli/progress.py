"""Progress on stderr: bars where that is a terminal."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from wasmkiln._untrusted import one_line
from wasmkiln.artifact import Phase
from wasmkiln.artifact import Progress as CallProgress
from wasmkiln.cli.session import console
from wasmkiln.cli.text import size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import TaskID

    from wasmkiln.artifact import ProgressCallback

_TEXT = "{task.description}"


class TransferBars:
    """One bar for each running call."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def uploading(self, name: str, size_bytes: int) -> Iterator[None]:
        """Show an upload, without a number: gRPC does not tell how far it is."""
        with self._task(f"uploading {name} ({size(size_bytes)})"):
            yield

    @contextmanager
    def compiling(self, name: str) -> Iterator[ProgressCallback]:
        """Show a compile. Yield the `on_progress` for Client.compile."""
        with self._task(f"asking for {name}") as task:

            def show(now: CallProgress) -> None:
                if now.phase is Phase.DOWNLOADING:
                    self._progress.update(
                        task,
                        description=one_line(f"downloading {name}"),
                        completed=now.done_bytes,
                        total=now.total_bytes,
                    )
                elif now.phase is Phase.UPLOADING:
                    text = f"uploading and compiling {name} ({size(now.total_bytes)})"
                    self._progress.update(task, description=one_line(text))

            yield show

    @contextmanager
    def _task(self, text: str) -> Iterator[TaskID]:
        task = self._progress.add_task(one_line(text), total=None)
        try:
            yield task
        finally:
            self._progress.remove_task(task)


@contextmanager
def transfer_bars() -> Iterator[TransferBars]:
    """Yield bars that vanish when their calls end; none unless stderr is a terminal."""
    with Progress(
        SpinnerColumn(),
        TextColumn(_TEXT, markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeElapsedColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        yield TransferBars(progress)


class Counter:
    """Counts what is done: a bar on a terminal, a line for each elsewhere."""

    def __init__(self, progress: Progress, text: str, total: int) -> None:
        self._progress, self._total = progress, total
        self._task = progress.add_task(text, total=total)
        self._done = 0
        self._has_ended = False
        self._lock = threading.Lock()

    def advance(self, sentence: str) -> None:
        """Count one more, of which the sentence says what became; called by many threads."""
        with self._lock:
            if self._has_ended:
                return
            self._done += 1
            self._progress.advance(self._task)
            if self._progress.disable and sentence:
                click.echo(one_line(f"{sentence} ({self._done} of {self._total})"), err=True)

    def end(self) -> None:
        """Show nothing more: what ends after an interrupt is no news."""
        with self._lock:
            self._has_ended = True


@contextmanager
def counter(text: str, total: int) -> Iterator[Counter]:
    """Yield a Counter to `total`, on stderr."""
    with Progress(
        TextColumn(_TEXT, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        count = Counter(progress, text, total)
        try:
            yield count
        finally:
            count.end()
