"""Disks that are full, read-only or gone: a miss and a log line, and no failed call."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from wasmkilnd.errors import TierUnavailable

from tests.contract.host_store import host_store
from tests.faults_host.stores import SEALER, artifact, check_is_right, store, tidied

ONE = artifact(1)


async def test_a_directory_that_vanishes_and_comes_back(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    async with store(directory) as tier:
        await tidied(tier)  # Or its work in the directory meets what happens to that.
        await tier.put(ONE)
        shutil.rmtree(directory)
        with pytest.raises(TierUnavailable, match="No such file"):
            await tier.get(ONE.key)
        await tier.put(ONE)
        assert await check_is_right(tier, ONE)


async def test_a_directory_below_a_folder_that_is_closed_is_named_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    closed.mkdir()
    monkeypatch.setattr("wasmkilnd.files.ownership.make_folder", refused)
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
