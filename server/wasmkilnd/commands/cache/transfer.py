"""``wasmkilnd cache export`` and ``import``: copy a warm cache as one file."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import click
from wasmkiln.cli.text import one_line, size
from wasmkiln.trusted_keys import PublicKey

from wasmkilnd.cache.redis.value_reader import RateLimiter, ValueReader
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.commands.cache.choice import Choice, choice_options
from wasmkilnd.commands.cache.session import (
    HELP,
    BadValuesFound,
    CacheCommandFailed,
    Place,
    Session,
    duration_option,
    rate_option,
    run,
    where_options,
)
from wasmkilnd.commands.cache.text import bar, document, say_json
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.maintenance.archive import ArchiveBroken, ArchiveReader, ArchiveWriter
from wasmkilnd.maintenance.inventory import Inventory, Listed
from wasmkilnd.maintenance.transfer import Import, Moved, export

_MAX_REPORTED = 20
"""The most values that are reported one by one: an archive may hold any number of bad ones."""
_YEARS_S = 10 * 366 * 86400

_json = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")


@click.command(name="export", context_settings=HELP)
@click.argument("file", metavar="FILE")
@choice_options
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@rate_option
@_json
@where_options("max_artifact_bytes")
def export_values(
    file: str,
    choice: Choice,
    force: bool,
    bytes_per_s: int,
    as_json: bool,
    place: Place,
) -> None:
    """Write all values that verify to FILE, or to standard output if that is "-".

    With --engine, write the engine's artifacts and their modules. Exits with 3 if it left out
    bad values.
    """
    left_out = _LeftOut()

    async def work(session: Session, write_to: BinaryIO) -> tuple[Moved, list[PublicKey]]:
        session.require_trust()
        archive = ArchiveWriter(write_to.write, int(time.time()), _made_by())
        inventory = Inventory(session.link, session.names, session.verifier)
        with bar("reading heads", None) as advance:
            chosen = await _chosen(inventory, choice, advance)
        reader = ValueReader(
            session.link, session.names, session.verifier, RateLimiter(bytes_per_s)
        )
        total = sum(value.stored_bytes for value in chosen)
        with bar("exporting", total, of_bytes=True) as advance:
            moved = await export(
                chosen,
                reader,
                session.names,
                archive,
                session.settings.max_artifact_bytes,
                left_out.report,
                lambda value: advance(value.stored_bytes),
            )
        return moved, [key for key in map(session.verifier.get, moved.signers) if key]

    with _written(file, force) as write_to:
        moved, signers = run(place, lambda session: work(session, write_to))
    # Standard output may be the archive.
    _sum_up("exported", moved, as_json, err=file == "-")
    for key in signers:
        click.echo(f"trust this key where you import the file: {key.hex}", err=True)
    left_out.finish(moved)


@click.command(name="import", context_settings=HELP)
@click.argument("file", metavar="FILE")
@click.option("--replace", is_flag=True, help="Replace values that exist already.")
@duration_option("--ttl", "ttl_s", "0", "The TTL of each value here, instead of what it had left.")
@rate_option
@_json
@where_options("max_artifact_bytes")
def import_values(
    file: str,
    replace: bool,
    ttl_s: float,
    bytes_per_s: int,
    as_json: bool,
    place: Place,
) -> None:
    """Store the values in FILE, or on standard input if that is "-".

    Each value is verified completely before it is stored, and keeps its signature. So first trust
    the key of the site that it comes from, with `wasmkilnd keys trust`. Exits with 3 if it left
    out bad values.
    """
    if ttl_s > _YEARS_S or 0 < ttl_s < 1:
        raise click.BadParameter("expected 1 s to 10 years", param_hint="--ttl")
    left_out = _LeftOut()

    async def work(session: Session, read_from: BinaryIO, size_bytes: int | None) -> Moved:
        session.require_trust()
        taking = Import(
            session.link,
            session.names,
            session.verifier,
            limit_bytes=session.settings.max_artifact_bytes,
            ttl_s=session.settings.cache_ttl_s,
            fixed_ttl_s=int(ttl_s),
            replace=replace,
            tell=left_out.report,
            limiter=RateLimiter(bytes_per_s),
        )
        try:
            with bar("importing", size_bytes, of_bytes=True) as advance:
                await taking.run(ArchiveReader(read_from), advance)
        except (ArchiveBroken, TierUnavailable) as failure:
            why = f"{failure}; {taking.moved.values} values were imported before"
            if isinstance(failure, TierUnavailable):
                raise TierUnavailable(why) from None
            raise CacheCommandFailed(f"cannot import {_shown(file)}: {why}") from None
        return taking.moved

    with _read(file) as (read_from, size_bytes):
        moved = run(place, lambda session: work(session, read_from, size_bytes), make=True)
    _sum_up("imported", moved, as_json, err=False)
    left_out.finish(moved)


class _LeftOut:
    """Reports on stderr why values are left out, for the first few of them."""

    def __init__(self) -> None:
        self._count = 0

    def report(self, what: str, rejected: ValueRejected) -> None:
        self._count += 1
        if self._count <= _MAX_REPORTED:
            click.echo(one_line(f"left out: {what}: {rejected}"), err=True)

    def finish(self, moved: Moved) -> None:
        """Raise BadValuesFound if values were left out because they are bad."""
        if self._count > _MAX_REPORTED:
            click.echo(f"left out: {self._count - _MAX_REPORTED} more", err=True)
        # Values in another format are no bad values: other daemons can read them.
        bad = moved.refused.total() - moved.refused[Cause.VERSION.value]
        if not bad:
            return
        advice = ""
        if moved.refused[Cause.STRANGER.value]:
            advice = "; trust their key with `wasmkilnd keys trust` if you know it"
        counts = ", ".join(f"{count} {cause}" for cause, count in moved.refused.most_common())
        raise BadValuesFound(f"left out bad values: {counts}{advice}")


async def _chosen(inventory: Inventory, choice: Choice, advance: Any) -> list[Listed]:
    """Return the values to export: with an engine, its artifacts and their modules."""
    listed = []
    async for value in inventory.values():
        advance(1)
        listed.append(value)
    chosen = [value for value in listed if choice.takes(value)]
    if choice.engine:
        modules = {value.key.module_sha256 for value in chosen}
        of_them = [value for value in listed if not value.key.artifact]
        chosen = [value for value in of_them if value.key.module_sha256 in modules] + chosen
    return chosen


def _sum_up(done: str, moved: Moved, as_json: bool, *, err: bool) -> None:
    if as_json:
        say_json({done: document(moved)}, err=err)
        return
    click.echo(
        f"{done} {moved.artifacts} artifacts and {moved.modules} modules"
        f" ({size(moved.stored_bytes)})",
        err=err,
    )
    for count, what in (
        (moved.kept, "existed already, and were kept"),
        (moved.duplicates, "were in the file more than once"),
        (moved.gone, "were deleted or expired meanwhile"),
    ):
        if count:
            click.echo(f"{count} {what}", err=err)


@contextlib.contextmanager
def _written(file: str, force: bool) -> Iterator[BinaryIO]:
    """Yield a file to write; it becomes ``file`` at the end, unless an error is raised."""
    if file == "-":
        if sys.stdout.isatty():
            raise click.UsageError("cannot write an archive to a terminal: redirect it to a file")
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except OSError as failure:
            # Else Python reports the error again when it flushes standard output at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise CacheCommandFailed(
                f"cannot write to standard output: {failure.strerror}"
            ) from None
        return
    path = Path(file)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not force:
            raise CacheCommandFailed(f"cannot write {file}: it exists already (see --force)")
        with aside.open("xb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        aside.replace(path)
    except OSError as failure:
        raise CacheCommandFailed(f"cannot write {file}: {failure.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


@contextlib.contextmanager
def _read(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Yield ``file``, opened, and its size if that is known."""
    if file == "-":
        yield sys.stdin.buffer, None
        return
    try:
        with Path(file).open("rb") as opened:
            yield opened, os.fstat(opened.fileno()).st_size
    except OSError as failure:
        raise CacheCommandFailed(f"cannot read {file}: {failure.strerror}") from None


def _made_by() -> str:
    return f"wasmkilnd {version('wasmkiln')}"


def _shown(file: str) -> str:
    return "standard input" if file == "-" else file
