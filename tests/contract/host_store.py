"""Host stores for tests."""

from __future__ import annotations

from pathlib import Path

from wasmkilnd.cache.host.entry import HeaderOf
from wasmkilnd.cache.host.options import HostOptions
from wasmkilnd.cache.host.tier import HostTier
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.model import IsPinned, nothing_pinned
from wasmkilnd.rpc.wire.headers import header_of
from wasmkilnd.signing.sealer import Sealer

from tests.contract.sealing import early_marks
from tests.doubles.notes import Notes


def host_tier(
    folder: Path,
    sealer: Sealer,
    recorder: Notes | None = None,
    *,
    limit_bytes: int = 100_000_000,
    marks: Marks | None = None,
    file_mode: int = 0o640,
    group: int | None = None,
    header_of: HeaderOf = header_of,
    is_pinned: IsPinned = nothing_pinned,
) -> HostTier:
    """A host store in ``folder``, as a daemon builds it."""
    return HostTier(
        HostOptions(folder, limit_bytes, file_mode, group),
        sealer,
        recorder or Notes(),
        header_of=header_of,
        marks=marks or early_marks(),
        is_pinned=is_pinned,
    )
