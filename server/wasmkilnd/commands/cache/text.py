"""Print tables, numbers, JSON and progress for ``wasmkilnd cache``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from wasmkiln.cli.session import console
from wasmkiln.cli.text import one_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_RIGHT = ">"


def say(line: str) -> None:
    """Print a line of the result."""
    click.echo(one_line(line))


def say_json(document: Mapping[str, Any], *, err: bool = False) -> None:
    """Print a document of the result, in one line."""
    click.echo(json.dumps(document), err=err)


def document(of: DataclassInstance) -> dict[str, Any]:
    """Return a dataclass's fields, counters as plain dictionaries (asdict breaks them)."""
    values = {field.name: getattr(of, field.name) for field in fields(of)}
    return {
        name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lay out ``rows`` below ``columns``; a column whose name begins with ">" is aligned right.

    Not rich's tables, which are too slow for many rows.
    """
    titles = [column.removeprefix(_RIGHT).upper() for column in columns]
    shown = [titles, *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*shown, strict=True)]
    for row in shown:
        cells = (
            cell.rjust(width) if column.startswith(_RIGHT) else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


def short(digest: str) -> str:
    """Return the beginning of a digest, enough to find it again."""
    return digest[:12]


def duration(seconds: float) -> str:
    """Return for example "40 s", "5 min", "3 h 20 min" or "6 d 23 h"."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


@contextmanager
def bar(text: str, total: int | None, *, of_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr if that is a terminal; yield the function that advances it."""
    counted: tuple[ProgressColumn, ...] = (
        (DownloadColumn(binary_units=True), TransferSpeedColumn())
        if of_bytes
        else (MofNCompleteColumn(),)
    )
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counted,
        TimeRemainingColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=not sys.stderr.isatty(),
        # Output to a pipe must not go to the terminal instead.
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        task = progress.add_task(text, total=total)
        yield lambda step: progress.advance(task, step)
