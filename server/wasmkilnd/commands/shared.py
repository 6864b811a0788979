"""What the commands share: the settings that they work by, tables, and their lines of the audit."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from wasmkiln.cli.text import elapsed, one_line, size

from wasmkilnd.errors import CannotUse
from wasmkilnd.files.ownership import refuse_root
from wasmkilnd.lifecycle.running import take_back_private
from wasmkilnd.settings import Settings, env_name, flag_name
from wasmkilnd.settings_loader import Decorator, load
from wasmkilnd.telemetry.audit import TO_LOG, append, line_of

json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
say = functools.partial(click.echo, err=True)
# Fields of which the beginning is enough for people.
_SHORT = ("module", "fingerprint", "signed_by")


def with_settings(*paths: str) -> Decorator:
    """Give a command the settings that `serve` has, and a flag for each of ``paths``."""

    def decorate(work: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(work)
        def run(**given: Any) -> None:
            flags = {name: value for name in paths if (value := given.pop(name))}
            try:
                work(ready(load(flags, os.environ).settings), **given)
            except BrokenPipeError:
                raise
            except OSError as failure:
                what = failure.filename or "a file"
                raise CannotUse(f"cannot use {what}: {failure.strerror}") from None

        command: Callable[..., None] = run
        for name in reversed(paths):
            text = f"{Settings.model_fields[name].description}  [env: {env_name(name)}]"
            metavar = "FILE" if name.endswith("_file") else "DIR"
            command = click.option(flag_name(name), metavar=metavar, help=text)(command)
        return command

    return decorate


def ready(settings: Settings) -> Settings:
    """Return ``settings`` where a command may work by them. Raises NotOurs for another user's.

    Where a container platform let the group of a volume write to private files, take that back, as
    the daemon does when it starts: it would refuse the files.
    """
    refuse_root(settings.state_dir)
    for private, files in take_back_private(settings):
        say(f"note: took the group's rights to {files} private files: {private}")
    return settings


def print_rows(rows: Sequence[Mapping[str, Any]], none: str, *, as_json: bool) -> None:
    """Print rows as JSON or as a table, or say that there is none."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        print_table(rows)
    else:
        say(none)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows, and the columns' names above."""
    columns = dict.fromkeys(name for row in rows for name in row)
    shown = [[name.partition("_")[0].upper() for name in columns]]
    shown += ([cell(name, row.get(name)) for name in columns] for row in rows)
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())


def cell(name: str, value: Any) -> str:
    """Return a field as people read it; of a dict, what is not zero or false."""
    if not value:
        return "-"
    if isinstance(value, dict):
        return one_line(", ".join(f"{each}={cell(each, of)}" for each, of in value.items() if of))
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, int):
        if "bytes" in name or name.endswith("_s"):
            return size(value) if "bytes" in name else elapsed(value)
        return as_time(value) if name in ("created", "expires") else str(value)
    text = one_line(str(value))
    return text[:12] if name in _SHORT else text


def as_time(seconds: int) -> str:
    """Return a time, which is given in seconds since 1970."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"


def audit_change(settings: Settings, what: str, **about: str) -> None:
    """Write what a command has changed, and who ran it, if ``settings`` name an audit file.

    A line that cannot be written is a warning: the change is made.
    """
    if settings.audit_file in ("", TO_LOG):  # A command has no log.
        return
    path = Path(settings.audit_file).expanduser()
    try:
        append(path, line_of("change", f"uid:{os.getuid()}", what=what, **about))
    except OSError as failure:
        say(f"warning: cannot write the audit to {path}: {failure.strerror}")
