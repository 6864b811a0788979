"""SIGHUP makes a running daemon serve engines that were installed, and end those that are gone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from wasmkiln import EngineRemoved

from tests.e2e import wasm
from tests.e2e.broken_engines import WRONG_CODE, copy_engine
from tests.e2e.callers import stopped_job
from tests.e2e.daemon import Daemon, reload, state_with
from tests.e2e.programs import Installed, installed_engines

OLD, NEW, BROKEN = "wasmtime-49.0.0", "wasmtime-50.0.1", "wasmtime-50.0.92"


@pytest.fixture(scope="module")
def daemon(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that begins with the old engine."""
    state = state_with(tmp_path_factory.mktemp("state"), OLD)
    with Daemon(state, ["--redis-url", "none", "--workers", "1"]) as running:
        yield running


def install(daemon: Daemon, engine_id: str) -> None:
    """Put an engine into the daemon's state directory, as ``wasmkilnd engine install`` does."""
    [engine] = [each for each in installed_engines() if each.id == engine_id]
    (daemon.state_dir / "engines" / engine_id).symlink_to(engine.path.resolve())


def listed(daemon: Daemon) -> list[str]:
    """Return what ``engines.json`` tells clients that ask no daemon."""
    [file] = daemon.state_dir.rglob("engines.json")
    document: dict[str, Any] = json.loads(file.read_text())
    return [engine["id"] for engine in document["engines"]]


def test_a_new_engine_is_served_and_a_removed_one_ends_after_its_jobs(daemon: Daemon) -> None:
    with daemon.client(timeout_s=120) as client, ThreadPoolExecutor(1) as threads:
        assert client.compile(wasm.adder(1), engine="wasmtime").header.engine.id == OLD
        install(daemon, NEW)
        reload(daemon)
        # What callers get stays, as long as they name no id.
        assert [each.engine.id for each in client.capabilities().engines] == [OLD, NEW]
        assert client.compile(wasm.adder(1), engine="wasmtime").header.engine.id == OLD
        assert client.compile(wasm.adder(1)).header.engine.id == OLD
        assert client.compile(wasm.adder(2), engine=NEW).header.engine.id == NEW
        assert listed(daemon) == [OLD, NEW]
        assert daemon.metric("workers", engine=NEW) == 1
        assert daemon.metric("compiles_total", engine=NEW, outcome="ok") == 1

        job, under_way = stopped_job(
            daemon, lambda module: threads.submit(client.compile, module, engine=OLD)
        )
        (daemon.state_dir / "engines" / OLD).unlink()
        reload(daemon)
        assert [each.engine.id for each in client.capabilities().engines] == [NEW]
        with pytest.raises(EngineRemoved, match=NEW):
            client.compile(wasm.adder(1), engine=OLD)
        assert client.compile(wasm.adder(1), engine="wasmtime").header.engine.id == NEW
        assert "engine has ended" not in daemon.log
        os.kill(job, signal.SIGCONT)
        assert under_way.result().header.engine.id == OLD
        daemon.wait_for_log('"engine has ended"')
        assert listed(daemon) == [NEW]
        assert daemon.metric("workers", engine=OLD) == 0


def test_one_that_fails_its_self_test_is_told_of_and_tried_again(daemon: Daemon) -> None:
    if not (daemon.state_dir / "engines" / NEW).exists():
        install(daemon, NEW)
    copy_engine(daemon.state_dir, "50.0.92", patch=WRONG_CODE)
    reload(daemon)
    with daemon.client() as client:
        told = {each.id: each.cause for each in client.capabilities().unserved_engines}
        assert "the self-test failed" in told[BROKEN]
        assert client.compile(wasm.adder(3), engine="wasmtime").header.engine.id != BROKEN
        (daemon.state_dir / "engines" / BROKEN).rename(daemon.state_dir / "aside")
        reload(daemon)
        assert not client.capabilities().unserved_engines
        copy_engine(daemon.state_dir, "50.0.92")
        there, aside = daemon.state_dir / "engines" / BROKEN / "bin", daemon.state_dir / "bin"
        there.rename(aside)
        reload(daemon)
        assert [each.id for each in client.capabilities().unserved_engines] == [BROKEN]
        daemon.wait_for_log("it is incomplete")
        aside.rename(there)
        reload(daemon)
        assert client.compile(wasm.adder(3), engine=BROKEN).header.engine.id == BROKEN
        assert client.compile(wasm.adder(3), engine="wasmtime").header.engine.id == NEW


def test_without_any_engine_those_that_are_served_stay(daemon: Daemon) -> None:
    engines = daemon.state_dir / "engines"
    engines.rename(daemon.state_dir / "engines-aside")
    engines.mkdir()
    reload(daemon)
    with daemon.client() as client:
        assert client.compile(wasm.adder(4)).header.size_bytes
    assert "no engine is installed: those that are served stay" in daemon.log
