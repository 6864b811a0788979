"""Disks that are full, read-only or gone: a miss and a log line, and no failed call."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from wasmkiln.shared import ENGINES
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import EvictScope

from tests.contract.host_store import host_store
from tests.doubles.notes import Notes
from tests.faults_host.stores import SEALER, artifact, check_is_right, check_limit, store, tidied

ONE = artifact(1)


async def test_a_directory_that_vanishes_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, notes = tmp_path / "store", Notes()
    monkeypatch.setattr("wasmkilnd.cache.host_store._TIDY_EVERY_S", 3600.0)
    async with store(directory, notes) as tier:
        await tidied(tier)  # Or its work in the directory meets what happens to that.
        await tier.put(ONE)
        shutil.rmtree(directory)
        with capture_logs() as logged:
            for _ in range(3):
                with pytest.raises(TierUnavailable, match="No such file"):
                    await tier.get(ONE.key)
                with pytest.raises(TierUnavailable):
                    await tier.file_of(ONE.key)
            assert await tier.held([ONE.key]) == frozenset()
            assert await tier.evict(EvictScope()) == await tier.evict(EvictScope())
            assert sum(line["event"] == "cannot read the host store" for line in logged) == 1
        await tier.put(ONE)
        assert await check_is_right(tier, ONE)
        assert notes.rejected == []
        assert tier.usage().entries == 1
    await check_limit(directory, 1 << 30)


async def test_a_directory_that_is_refused_is_told_once_with_the_cause(tmp_path: Path) -> None:
    no_folder, below = tmp_path / "file", tmp_path / "file" / "below"
    no_folder.write_text("")
    for directory in (no_folder, below):
        with capture_logs() as logged:
            async with store(directory) as tier:
                for doing in (tier.get(ONE.key), tier.put(ONE), tier.file_of(ONE.key)):
                    with pytest.raises(TierUnavailable, match="Not a directory"):
                        await doing
                await tier.write_engines()
                assert tier.usage().entries == 0
                assert tier.trouble == (
                    f"cannot use its directory {directory}: Not a directory: {no_folder}"
                )
        [line] = logged
        assert (line["event"], line["directory"]) == ("cannot use the host store", str(directory))


async def test_a_directory_below_a_folder_that_is_closed_is_named_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    closed.mkdir()
    monkeypatch.setattr("wasmkilnd.ownership.make_folder", refused)
    async with store(closed / "store") as tier:
        assert tier.trouble.endswith(f"{closed / 'store'}: Permission denied: {closed}")


async def test_a_group_that_the_daemon_is_not_in_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, user: int, group: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.chown", refused)
    directory, group = tmp_path / "store", 54321
    tier = host_store(directory, SEALER, group=group)
    with capture_logs() as logged:
        await tier.start()
        await tier.write_engines()
        await tier.close()
    [line] = logged
    assert line["event"] == "cannot use the host store"
    assert str(directory) in line["cause"]
    assert f"group {group} of host_store_group" in line["cause"]


async def test_a_store_is_used_once_its_directory_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.cache.host_store._TIDY_EVERY_S", 0.02)
    directory = tmp_path / "store"
    directory.write_text("")
    async with store(directory) as tier:
        await tier.write_engines()
        assert tier.trouble
        directory.unlink()
        async with asyncio.timeout(60):
            while tier.trouble or not (directory / ENGINES).exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await tier.put(ONE)
        assert await check_is_right(tier, ONE)
