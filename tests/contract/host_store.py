"""Host stores for tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from wasmkilnd.cache.host_store import HeaderOf, HostDirectory, HostOptions, HostStore
from wasmkilnd.model import IsPinned, nothing_pinned
from wasmkilnd.rpc.messages import header_of
from wasmkilnd.signing.sealer import Sealer

from tests.doubles.notes import Notes

NO_ENGINES = {"version": 1, "engines": []}


class OnlyStore(HostStore):
    """A store that takes its directory with it when it is closed."""

    async def close(self) -> None:
        await super().close()
        await self.directory.close()


def host_store(
    folder: Path,
    verifier: Sealer,
    metrics: Notes | None = None,
    *,
    limit_bytes: int = 100_000_000,
    file_mode: int = 0o640,
    group: int | None = None,
    header_of: HeaderOf = header_of,
    engines: Callable[[], Mapping[str, object]] = lambda: NO_ENGINES,
    is_pinned: IsPinned = nothing_pinned,
    wait_s: float = math.inf,
) -> OnlyStore:
    """A host store in ``folder``, as a daemon builds it."""
    return OnlyStore(
        HostDirectory(HostOptions(folder, limit_bytes, file_mode, group)),
        verifier,
        metrics or Notes(),
        header_of=header_of,
        limit_bytes=limit_bytes,
        engines=engines,
        is_pinned=is_pinned,
        wait_s=wait_s,
    )
