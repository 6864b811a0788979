"""Notice that the files have changed that say who may do what, and those of TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from wasmkilnd.access.sources import files_of
from wasmkilnd.config.schema import Settings
from wasmkilnd.lifecycle.listening import tls_options

_LOOK_S = 1.0

Stamps: TypeAlias = tuple[tuple[object, ...], ...]


def watched_files(settings: Settings) -> Iterable[Path]:
    """Return the files that ``settings`` name and the daemon reads again when they change."""
    return [*files_of(settings), *map(Path, tls_options(settings).files)]


def stamps_of(files: Iterable[Path]) -> Stamps:
    """Return what changes whenever a file is written, replaced, made or removed."""
    found: list[tuple[object, ...]] = []
    for file in files:
        try:
            it = file.stat()
        except OSError as failure:
            found.append((str(file), failure.errno))
        else:
            found.append(
                (str(file), it.st_dev, it.st_ino, it.st_mtime_ns, it.st_ctime_ns, it.st_size)
            )
    return tuple(found)


async def follow(
    files: Callable[[], Iterable[Path]],
    seen: Stamps,
    changed: Callable[[], Awaitable[None]],
    look_s: float = _LOOK_S,
) -> None:
    """Await ``changed`` whenever ``files`` have changed since ``seen``, until cancelled.

    Files may be written in several steps: so wait until two looks find them the same.
    """
    looked = seen
    while True:
        await asyncio.sleep(look_s)
        now = await asyncio.to_thread(lambda: stamps_of(files()))
        stable, looked = now == looked, now
        if stable and now != seen:
            seen = now
            await changed()
