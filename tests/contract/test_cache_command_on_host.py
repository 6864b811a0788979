"""`wasmkilnd cache --tier host_store` on entries that a daemon's own code wrote."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from wasmkiln.shared import ARTIFACT, ATTESTATION, HEADER, entry_path
from wasmkilnd.model import Artifact
from wasmkilnd.signing.sealer import Sealer

from tests.contract.cache_command import MODULE, SEALER, WASMER, Command, removed, row_of
from tests.contract.host_store import host_store
from tests.contract.values import artifact

WASMTIME = SEALER.seal(artifact(4, 100_000, "wasmtime", of=MODULE))
OTHER = SEALER.seal(artifact(5))
ALL = (WASMER, WASMTIME, OTHER)


async def fill(folder: Path, signing: Sealer, *artifacts: Artifact) -> None:
    """Store artifacts as a daemon does."""
    store = host_store(folder, signing)
    await store.start()
    for each in artifacts:
        await store.put(each)
    await store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A host store with the artifacts in it."""
    asyncio.run(fill(tmp_path / "host", SEALER, *ALL))
    return tmp_path / "host"


@pytest.fixture
def cache(folder: Path, tmp_path: Path, kept_as_it_was: None) -> Command:
    return OnHost("none", tmp_path / "state")


class OnHost(Command):
    """Runs `wasmkilnd cache` about the host store."""

    def __call__(self, *words: str, **environ: str) -> Result:
        name, *rest = words
        directory = str(Path(self.environ["WASMKILN_STATE_DIR"]).parent / "host")
        where = ("--tier", "host_store", "--host-store-dir", directory)
        return super().__call__(name, *where, *rest, **environ)


def path_of(folder: Path, what: Artifact) -> Path:
    return entry_path(folder, what.spec.fingerprint, what.module_sha256)


def test_each_kind_of_damage_is_found_and_removed(cache: Command, folder: Path) -> None:
    [row] = cache.rows("--engine", "wasmtime", "--module", MODULE.sha256[:9])
    assert row == row_of(WASMTIME, row["stored_bytes"], None)
    assert row["stored_bytes"] > 100_000
    (path_of(folder, OTHER) / HEADER).write_text("{")
    unreadable = [row["unreadable"]["cause"] for row in cache.rows() if row["unreadable"]]
    assert unreadable == ["format"]
    assert cache.scrub()[1]["deleted"] == 1
    code = path_of(folder, WASMER) / ARTIFACT
    code.chmod(0o600)
    code.write_bytes(bytes(len(code.read_bytes())))
    (path_of(folder, WASMTIME) / ATTESTATION).unlink()
    findings, summary = cache.scrub("--dry-run")
    assert len(findings) == 2
    assert (summary["artifacts"], summary["deleted"], summary["dry_run"]) == (0, 0, True)
    findings, summary = cache.scrub()
    assert findings.keys() == {os.fsencode(path_of(folder, one)) for one in (WASMER, WASMTIME)}
    assert summary["deleted"] == 2
    assert not path_of(folder, WASMER).exists()
    assert cache.rows() == []


def test_what_is_chosen_is_removed_and_pins_are_heeded(
    cache: Command, folder: Path, tmp_path: Path
) -> None:
    pins = tmp_path / "state" / "pins" / "default.json"
    pins.parent.mkdir(parents=True, mode=0o700)
    times = {MODULE.sha256: [1_700_000_000_000, 0]}
    pins.write_text(json.dumps({"pins": times}))
    try:
        kept = removed(cache.good("rm", "--module", MODULE.sha256[:8], "--json"))
        assert (kept["artifacts"], kept["pinned"]) == (0, 2)
    finally:
        shutil.rmtree(tmp_path / "state")
    assert removed(cache.good("rm", "--engine", "wasmer", "--json"))["artifacts"] == 1
    assert not path_of(folder, WASMER).exists()
    assert removed(cache.good("rm", "--all", "--yes", "--json"))["artifacts"] == 2
    assert cache.rows() == []


def test_where_there_is_no_store_one_sentence_says_so(cache: Command, folder: Path) -> None:
    shutil.rmtree(folder)
    for words in (["ls"], ["scrub"], ["rm", "--all", "--yes"]):
        told = cache.refusal(*words)
        why = f"No such file or directory: {folder.parent}"
        assert told.endswith(f"cannot use its directory {folder}: {why}")
    assert "host_store_dir is none" in cache.refusal("ls", "--host-store-dir", "none")
