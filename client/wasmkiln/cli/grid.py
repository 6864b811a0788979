"""A table with safe cells and a bounded size, whatever text a daemon sends."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from wasmkiln._untrusted import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

_RIGHT = ">"
MAX_ROWS = 1_000
_MAX_LINES_OF_A_CELL = 50
_MAX_CELL = 1_000


class Grid:
    """A table. A column whose name starts with ">" is aligned right."""

    def __init__(self, *columns: str, title: str | None = None) -> None:
        self._table = Table(
            box=SIMPLE_HEAD,
            title=one_line(title) if title else None,
            title_justify="left",
            pad_edge=False,
        )
        for column in columns:
            self._table.add_column(
                one_line(column.removeprefix(_RIGHT)),
                justify="right" if column.startswith(_RIGHT) else "left",
                overflow="fold",
            )
        self._rows = 0

    def __bool__(self) -> bool:
        return self._rows > 0

    def row(self, *cells: str | Sequence[str]) -> None:
        """Add a row. A cell of several texts has a line for each."""
        self._rows += 1
        if self._rows <= MAX_ROWS:
            self._table.add_row(*map(_cell, cells))

    def section(self) -> None:
        """Draw a line below the rows so far."""
        self._table.add_section()

    def shown(self) -> RenderableType:
        """Return what a console can print: 1,000 rows at most, and how many more there are."""
        if self._rows <= MAX_ROWS:
            return self._table
        return Group(self._table, _more(self._rows - MAX_ROWS))


def lines(texts: Iterable[str]) -> list[str]:
    """Return sentences below a table, one on each line, and how many more there are."""
    all_texts = list(texts)
    shown = [one_line(text) for text in islice(all_texts, MAX_ROWS)]
    left_out = len(all_texts) - len(shown)
    return [*shown, _more(left_out)] if left_out else shown


def _cell(cell: str | Sequence[str]) -> str:
    if isinstance(cell, str):
        return one_line(cell, _MAX_CELL)
    shown = [one_line(text, _MAX_CELL) for text in cell[:_MAX_LINES_OF_A_CELL]]
    left_out = len(cell) - len(shown)
    return "\n".join([*shown, f"… {left_out:,} more"] if left_out else shown)


def _more(count: int) -> str:
    return f"… {count:,} more: --json shows all"
