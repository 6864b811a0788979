"""What the tests of a host store's faults share: stores, artifacts, and what may come back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from wasmkiln.shared import ARTIFACT, ATTESTATION, HEADER, entry_path
from wasmkilnd.cache.host_store import HostStore, measure
from wasmkilnd.model import Artifact, HostFile
from wasmkilnd.signing.keys import PrivateKey
from wasmkilnd.signing.sealer import Sealer

from tests.contract.host_store import host_store
from tests.contract.sealing import sealer
from tests.contract.values import artifact as unsigned
from tests.contract.values import payload_of, same
from tests.doubles.notes import Notes

# The same key in each process that a test starts.
SEALER = sealer(PrivateKey.parse("11" * 32))
FILES = (ARTIFACT, HEADER, ATTESTATION)


def artifact(tag: int = 0, size_bytes: int = 3000, engine: str = "wasmtime") -> Artifact:
    """A signed artifact, the same for the same arguments."""
    return SEALER.seal(unsigned(tag, size_bytes, engine))


def folder_of(directory: Path, one: Artifact) -> Path:
    """Where the entry of an artifact is."""
    return entry_path(directory, one.spec.fingerprint, one.module_sha256)


@asynccontextmanager
async def store(
    folder: Path,
    notes: Notes | None = None,
    *,
    limit_bytes: int = 100_000_000,
    by: Sealer = SEALER,
) -> AsyncIterator[HostStore]:
    """A host store that runs, as that of a daemon that just started."""
    tier = host_store(folder, by, notes, limit_bytes=limit_bytes)
    await tier.start()
    try:
        yield tier
    finally:
        await tier.close()


async def tidied(tier: HostStore) -> None:
    """Wait until a store that has just started is done with its first round of tidying."""
    async with asyncio.timeout(60):
        while not tier.directory.rounds:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def check_is_right(tier: HostStore, one: Artifact) -> bool:
    """Check that all that ``tier`` has of ``one`` is right; return whether ``get`` found it."""
    found = await tier.get(one.key)
    assert found is None or same(found, one)
    named = await tier.file_of(one.key)
    if named is not None:
        check_file(named[1], one)
        assert named[0].attestation == one.attestation
    return found is not None


def check_file(file: HostFile, one: Artifact) -> bool:
    """Do what a client does with a file: return whether it is there, and the one that was named.

    Check that it holds the artifact, if it is.
    """
    try:
        with Path(file.path).open("rb") as opened:
            found = os.fstat(opened.fileno())
            if (found.st_dev, found.st_ino) != (file.device, file.inode):
                return False
            assert opened.read() == payload_of(one.frames)
    except FileNotFoundError:
        return False
    return True


def entries_on_disk(directory: Path) -> dict[Path, int]:
    """The folders of all entries, and what the store counts for each."""
    return {
        path: size_bytes
        for path in directory.glob("[0-9a-f]*/??/[0-9a-f]*")
        if (size_bytes := measure(path)[0])
    }


async def check_limit(directory: Path, limit_bytes: int) -> None:
    """Check that the limit holds, and that a daemon that starts counts what is on the disk."""
    found = entries_on_disk(directory)
    assert sum(found.values()) <= limit_bytes
    async with store(directory) as tier:
        await tidied(tier)
        assert (tier.usage().entries, tier.usage().bytes) == (len(found), sum(found.values()))
