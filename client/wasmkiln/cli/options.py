"""Options and arguments that several commands take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wasmkiln._requests import is_digest
from wasmkiln._settings import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])


def parsed_size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Return an option's size, such as 512MiB, in bytes."""
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


_LIKE_A_DIGEST = re.compile(r"[0-9A-Fa-f]{40,}")


class ModuleParameter(click.Path):
    """A module's file, or the digest of one that the daemon has."""

    name = "FILE|SHA256"

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, readable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text itself, or fail with a usage error."""
        if is_digest(value) and not Path(value).exists():
            return str(value)
        if _LIKE_A_DIGEST.fullmatch(value) and not Path(value).exists():
            self.fail(
                f"{value!r} is neither a file nor a SHA-256 (64 lowercase hexadecimal digits)",
                param,
                ctx,
            )
        return str(super().convert(value, param, ctx))


MODULE = ModuleParameter()
MODULE_FILE = click.Path(exists=True, dir_okay=False, readable=True)


def name_and_value(text: str) -> tuple[str, str]:
    """Return what NAME=VALUE says. Raise click.BadParameter for anything else."""
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value


def _settings(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    return dict(map(name_and_value, values))


def artifact_options(*, several_engines: bool = False) -> Callable[[F], F]:
    """Add --engine, --target, --cpu and --set, which choose an artifact of a module."""

    def decorate(command: F) -> F:
        for option in (
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="NAME=VALUE",
                callback=_settings,
                help="A setting; repeat for more. `wasmkiln engines --settings` lists them.",
            ),
            click.option("--cpu", metavar="LEVEL", help="CPU level, e.g. x86-64-v3 or baseline."),
            click.option(
                "--target", metavar="TRIPLE", help="Target, e.g. x86_64-unknown-linux-gnu."
            ),
            click.option(
                "--engine",
                "engines" if several_engines else "engine",
                multiple=several_engines,
                metavar="ENGINE",
                help="Engine, e.g. wasmtime or wasmer-1.1.0"
                + ("; repeat for more." if several_engines else "."),
            ),
        ):
            command = option(command)
        return command

    return decorate
