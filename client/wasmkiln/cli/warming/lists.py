"""@FILE and -: lists of sources, one on a line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_BYTES = 16 * 2**20


def expanded(arguments: tuple[str, ...]) -> Iterator[str]:
    """Yield the sources that arguments name. Raise click.UsageError for a list that is none.

    In a list, empty lines and lines that begin with # do not count.
    """
    for argument in arguments:
        if argument == "-":
            yield from _lines(sys.stdin.buffer, "standard input")
        elif argument.startswith("@"):
            try:
                with Path(argument[1:]).open("rb") as file:
                    yield from _lines(file, argument[1:])
            except OSError as error:
                raise click.UsageError(
                    f"cannot read the list {argument[1:]}: {error.strerror}"
                ) from None
        else:
            yield argument


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
    content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise click.UsageError(f"the list {name} is larger than {_MOST_BYTES:,} bytes: split it")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise click.UsageError(f"the list {name} is no UTF-8 text") from None
    for line in map(str.strip, text.splitlines()):
        if line == "-" or line.startswith("@"):
            raise click.UsageError(f"the list {name} names another list: {line[:100]}")
        if line and not line.startswith("#"):
            yield line
