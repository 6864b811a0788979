"""The flags that choose the values a command is about."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from wasmkilnd.maintenance.inventory import Listed

_BEGINNING = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine's artifacts, a module and its artifacts, or everything."""

    engine: str = ""
    """An engine's id or name."""
    module: str = ""
    """The beginning of a module's digest."""

    def takes(self, value: Listed) -> bool:
        """Return whether a value is among the chosen ones."""
        if not value.key.module_sha256.startswith(self.module):
            return False
        return not self.engine or self.engine in (value.engine, value.engine.rpartition("-")[0])


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--engine`` and ``--module`` to a command, which receives a ``choice``."""

    @functools.wraps(command)
    def with_choice(*args: Any, engine: str, module: str, **given: Any) -> Any:
        return command(*args, choice=Choice(engine, module), **given)

    decorated: Callable[..., Any] = with_choice
    decorated = click.option(
        "--module",
        default="",
        callback=_beginning,
        metavar="SHA256",
        help="Only this module and its artifacts; the first digits of the digest are enough.",
    )(decorated)
    return click.option(
        "--engine",
        default="",
        metavar="ENGINE",
        help="Only artifacts of an engine: wasmtime-50.0.1, or wasmtime for all versions.",
    )(decorated)


def _beginning(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and not _BEGINNING.fullmatch(value):
        raise click.BadParameter("expected 4 to 64 lowercase hexadecimal digits")
    return value
