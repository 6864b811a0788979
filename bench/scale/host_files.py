"""A host store with many entries, made faster than a daemon would make them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from wasmkiln.host_layout import entry_path
from wasmkilnd.cache.host.index import Index
from wasmkilnd.cache.host.options import HostOptions
from wasmkilnd.cache.host.tier import HostTier
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.rpc.wire.headers import header_of
from wasmkilnd.telemetry.metrics.recorder import Metrics

from bench.scale.entries import Entries

_ALL_FILES = 10**4
"""Each entry takes five inodes and 20 KB: of more than this, a tenth have files."""
_NO_LIMIT = 1 << 50
_ROWS_AT_ONCE = 10_000


def files_of(count: int) -> int:
    """Return how many of so many entries have files."""
    return count if count <= _ALL_FILES else count // 10


def host_tier(folder: Path, entries: Entries) -> HostTier:
    """Return the tier as the daemon builds it."""
    options = HostOptions(folder, _NO_LIMIT)
    return HostTier(options, entries.sealer, Metrics("bench"), header_of=header_of, marks=Marks())


async def fill(folder: Path, entries: Entries, count: int, real: Iterable[int], files: int) -> None:
    """Store entries; those in ``real`` as a daemon does, and copies of one under other names.

    Past ``files`` entries have their row in the index, but no files.
    """
    tier = host_tier(folder, entries)
    await tier.start()
    written = set(real)
    for number in written:
        await tier.put(entries.sealed(number))
    await tier.close()
    others = [number for number in range(count) if number not in written]
    model = _path(folder, entries, next(iter(written)))
    content = {file.name: file.read_bytes() for file in model.iterdir()}
    for number in others[: files - len(written)]:
        path = _path(folder, entries, number)
        path.mkdir(parents=True, mode=model.stat().st_mode & 0o777)
        for name, data in content.items():
            (path / name).write_bytes(data)
    index, now_s = Index(folder), int(time.time())
    engine_id = entries.spec.engine.id
    for start in range(0, len(others), _ROWS_AT_ONCE):
        with index.write() as rows:
            for number in others[start : start + _ROWS_AT_ONCE]:
                rows.add(entries.key(number), engine_id, 20 * 1024, now_s)
    index.close()


def _path(folder: Path, entries: Entries, number: int) -> Path:
    key = entries.key(number)
    return entry_path(folder, key.fingerprint, key.module_sha256)
