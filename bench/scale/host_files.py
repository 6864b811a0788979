"""A host store with many entries, made faster than a daemon would make them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from wasmkiln.shared import entry_path
from wasmkilnd.cache.host_store import HostDirectory, HostOptions, HostStore
from wasmkilnd.rpc.messages import header_of
from wasmkilnd.telemetry.metrics import Metrics

from bench.scale.entries import Entries

_ALL_FILES = 10**4
"""Each entry takes four inodes and 16 KB: of more than this, a tenth have files."""
_NO_LIMIT = 1 << 50


def files_of(count: int) -> int:
    """Return how many of so many entries have files."""
    return count if count <= _ALL_FILES else count // 10


@asynccontextmanager
async def host_store(folder: Path, entries: Entries) -> AsyncIterator[HostStore]:
    """Run the store as the daemon builds it."""
    directory = HostDirectory(HostOptions(folder, _NO_LIMIT))
    store = HostStore(
        directory, entries.sealer, Metrics("bench"), header_of, engines=dict, limit_bytes=_NO_LIMIT
    )
    await store.start()
    yield store
    await store.close()
    await directory.close()


async def fill(folder: Path, entries: Entries, count: int, real: Iterable[int], files: int) -> None:
    """Store ``files`` entries; those in ``real`` as a daemon does, and copies of one of them."""
    written = set(real)
    async with host_store(folder, entries) as store:
        for number in written:
            await store.put(entries.sealed(number))
    others = [number for number in range(count) if number not in written]
    model = _path(folder, entries, next(iter(written)))
    content = {file.name: file.read_bytes() for file in model.iterdir()}
    for number in others[: files - len(written)]:
        path = _path(folder, entries, number)
        path.mkdir(parents=True, mode=model.stat().st_mode & 0o777)
        for name, data in content.items():
            (path / name).write_bytes(data)


def _path(folder: Path, entries: Entries, number: int) -> Path:
    key = entries.key(number)
    return entry_path(folder, key.fingerprint, key.module_sha256)
