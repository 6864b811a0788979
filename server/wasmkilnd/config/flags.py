"""The command line flags of every setting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from wasmkilnd.config.load import CONFIG_ENV, REMOVED, FlagValue
from wasmkilnd.config.schema import Settings, env_name, flag_name, has_flag
from wasmkilnd.config.show import shown_default

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag for every setting, and ``--config``, to a click command.

    It takes the flags of removed settings too, so that ``load`` says what to do instead.
    """
    for field in REMOVED:
        command = click.option(flag_name(field), field, hidden=True)(command)
    return some_options(lambda field: True)(command)


def some_options(chosen: Callable[[str], bool]) -> Decorator:
    """Return a decorator that adds flags for ``chosen`` settings and ``--config`` to a command.

    The command receives ``flags``, a dict by field name of those that were given,
    and ``config``, a path or None: the first and last arguments of
    :func:`wasmkilnd.config.load.load`. click does not check values: ``load`` reports the
    mistakes of every layer in the same words.
    """
    fields = [field for field in Settings.model_fields if has_flag(field) and chosen(field)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_flags(*args: Any, **given: Any) -> Any:
            flags: dict[str, FlagValue] = {}
            for field in (*fields, *REMOVED):
                value = given.pop(field, None)
                if value is not None and value != ():
                    flags[field] = value
            return command(*args, flags=flags, **given)

        decorated: Callable[..., Any] = with_flags
        # A decorator that comes later shows earlier in the help.
        for field in reversed(fields):
            decorated = _option(field, Settings.model_fields[field])(decorated)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            default=None,
            metavar="FILE",
            help=f"A TOML file with settings.  [env: {CONFIG_ENV}]",
        )(decorated)

    return decorate


def _option(field: str, info: FieldInfo) -> Decorator:
    flag = flag_name(field)
    text = f"{info.description}  [env: {env_name(field)}; default: {shown_default(field) or '-'}]"
    if info.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field, default=None, help=text)
    repeatable = get_origin(info.annotation) is tuple
    return click.option(
        flag,
        field,
        type=str,
        default=None,
        multiple=repeatable,
        metavar=_metavar(field, info),
        help=text,
    )


def _metavar(field: str, info: FieldInfo) -> str:
    if get_origin(info.annotation) is Literal:
        return "|".join(get_args(info.annotation))
    if field.endswith("_bytes"):
        return "SIZE"
    if field.endswith("_s"):
        return "DURATION"
    if field.endswith("listen"):
        return "ADDRESS"
    if info.annotation is int:
        return "COUNT"
    if field.endswith("_file"):
        return "FILE"
    return "DIR" if field.endswith("_dir") else "TEXT"
