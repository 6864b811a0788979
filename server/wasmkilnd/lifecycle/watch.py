"""Notice that the files have changed that say who may do what, and those of TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import structlog

from wasmkilnd.access.guard import files_of
from wasmkilnd.settings import Settings

log = structlog.get_logger("wasmkilnd")

_LOOK_S = 1.0

Stamps: TypeAlias = tuple[tuple[object, ...], ...]


def watched_files(settings: Settings) -> Iterable[Path]:
    """Return the files that ``settings`` name and the daemon reads again when they change."""
    tls = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    return [*files_of(settings), *map(Path, filter(None, tls))]


def stamps_of(files: Iterable[Path]) -> Stamps:
    """Return what changes whenever a file is written, replaced, made or removed."""
    found: list[tuple[object, ...]] = []
    for file in files:
        try:
            it = file.stat()
        except (OSError, ValueError) as failure:  # ValueError for a path that no file can have
            found.append((str(file), type(failure), getattr(failure, "errno", None)))
        else:
            found.append(
                (str(file), it.st_dev, it.st_ino, it.st_mtime_ns, it.st_ctime_ns, it.st_size)
            )
    return tuple(found)


async def follow(
    files: Callable[[], Iterable[Path]],
    seen: Stamps,
    changed: Callable[[], Awaitable[bool]],
    look_s: float = _LOOK_S,
) -> None:
    """Await ``changed`` whenever ``files`` have changed since ``seen``, until cancelled.

    It returns whether it could use all of them. Files may be written in several steps: so wait
    until two looks find them the same. Whatever fails is tried again at the next look: a revoked
    token counts until this has read that it is.
    """
    looked, whole = seen, True
    told: type[Exception] | None = None
    while True:
        await asyncio.sleep(look_s)
        try:
            now = await asyncio.to_thread(lambda: stamps_of(files()))
            stable, looked = now == looked, now
            if stable and (now != seen or not whole):
                whole = await changed()
                seen = now
        except Exception as defect:
            if type(defect) is not told:
                told = type(defect)
                log.exception("a defect keeps changed files from being read")
        else:
            told = None
