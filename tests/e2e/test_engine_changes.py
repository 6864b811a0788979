"""SIGHUP makes a running daemon serve engines that were installed, and end those that are gone.

Callers of a name get what they got before, until the operator says otherwise.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import Client, EngineRemoved

from tests.e2e import wasm
from tests.e2e.broken_engines import WRONG_CODE, copy_engine
from tests.e2e.callers import stopped_job
from tests.e2e.daemon import FAILED, Configured, Daemon, reload, state_with
from tests.e2e.processes import eventually, send, workers_of
from tests.e2e.programs import WASMKILND, Installed, installed_engines, run

OLD, NEW, BROKEN = "wasmtime-49.0.0", "wasmtime-50.0.1", "wasmtime-50.0.92"
GONE, ENDED = "wasmtime-48.0.0", '"engine has ended"'


@pytest.fixture(scope="module")
def configured(
    engines: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Configured]:
    """A daemon that begins with the old engine, and a file of settings."""
    with Configured(state_with(tmp_path_factory.mktemp("engines") / "state", OLD)) as running:
        yield running


@pytest.fixture
def daemon(configured: Configured) -> Daemon:
    """The daemon, for which the new engine is installed."""
    if not (configured.daemon.state_dir / "engines" / NEW).exists():
        install(configured.daemon, NEW)
        reload(configured.daemon)
    return configured.daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client(timeout_s=120) as one:
        yield one


def install(daemon: Daemon, engine_id: str) -> None:
    """Put an engine into the daemon's state directory, as ``wasmkilnd engine install`` does."""
    [engine] = [each for each in installed_engines() if each.id == engine_id]
    (daemon.state_dir / "engines" / engine_id).symlink_to(engine.path.resolve())


def listed(daemon: Daemon) -> list[str]:
    """Return what ``engines.json`` tells clients that ask no daemon."""
    [file] = daemon.state_dir.rglob("engines.json")
    document: dict[str, Any] = json.loads(file.read_text())
    return [engine["id"] for engine in document["engines"]]


def engine(
    daemon: Daemon | Path, *command: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    state = daemon if isinstance(daemon, Path) else daemon.state_dir
    return run(WASMKILND, "engine", *command, "--state-dir", state, **environ)


def got(client: Client, name: str = "") -> str:
    return client.compile(wasm.adder(1), engine=name).header.engine.id


def test_a_new_engine_is_served_and_names_stay(daemon: Daemon, client: Client) -> None:
    assert [each.engine.id for each in client.capabilities().engines] == [OLD, NEW]
    assert (got(client, "wasmtime"), got(client), got(client, NEW)) == (OLD, OLD, NEW)
    assert listed(daemon) == [OLD, NEW]
    assert daemon.metric("workers", engine=NEW) == 1
    assert daemon.metric("compiles_total", engine=NEW, outcome="ok") == 1


def test_a_name_is_moved_by_the_operator_alone(daemon: Daemon, client: Client) -> None:
    assert (got(client, "wasmtime"), got(client)) == (OLD, OLD)
    moved = engine(daemon, "use", NEW, "--reload")
    assert moved.returncode == 0, moved.stderr
    assert f"wasmtime and requests that name no engine will stand for {NEW}" in moved.stderr
    # The command waits for the reload.
    assert f"process id {daemon.pid} is reloaded" in moved.stderr
    assert (got(client, "wasmtime"), got(client)) == (NEW, NEW)
    assert client.stats().engine_names["wasmtime"] == NEW
    assert client.capabilities().engine_names["wasmtime"] == NEW
    assert [each["id"] for each in json.loads(engine(daemon, "ls", "--json").stdout)] == [
        NEW,
        OLD,
    ]
    head, first, second = engine(daemon, "ls").stdout.splitlines()
    assert head.split() == ["ID", "NAME", "VERSION", "PYTHON", "PATH", "NAMES"]
    assert (first.split()[0], second.split()[0]) == (NEW, OLD)
    assert first.endswith("  wasmtime, the default")
    # A restart keeps it: what names stand for is in the state directory.
    assert engine(daemon, "use", OLD, "--reload").returncode == 0
    assert got(client, "wasmtime") == OLD
    assert '"wasmtime": "wasmtime-49.0.0"' in (daemon.state_dir / "engine-names.json").read_text()


def test_an_alias_decides_and_follows_a_reload(
    configured: Configured, daemon: Daemon, client: Client
) -> None:
    configured.write(engine_alias=[f"wasmtime={NEW}"])
    reload(daemon)
    assert got(client, "wasmtime") == NEW
    assert listed(daemon)[0] == NEW
    assert client.stats().engine_names == {"wasmtime": NEW}
    refused = engine(daemon, "use", OLD, WASMKILN_CONFIG=str(configured.file))
    assert refused.returncode == 1
    assert "engine_alias says what it stands for" in refused.stderr
    # A target that is not there is refused, and changes nothing.
    configured.write(engine_alias=[f"wasmtime={GONE}"])
    [line] = [each for each in configured.reload() if each["event"] == FAILED]
    assert f"wasmtime stands for {GONE}, which is not installed" in line["cause"]
    assert got(client, "wasmtime") == NEW
    # Without the alias the name stays where it is.
    configured.write(engine_alias=[], default_engine=OLD)
    reload(daemon)
    assert (got(client, "wasmtime"), got(client)) == (NEW, OLD)
    configured.write(default_engine="", engine_alias=[f"wasmtime={GONE}"])
    failed = engine(daemon, "use", OLD, "--reload")
    assert failed.returncode == 1
    why = f"error: cannot reload the daemon with the process id {daemon.pid}, which goes on"
    assert failed.stderr.splitlines()[-1].startswith(why)
    configured.write(engine_alias=[])
    reload(daemon)


def test_removing_what_is_served_needs_force_and_callers_are_told(
    daemon: Daemon, client: Client
) -> None:
    assert engine(daemon, "use", OLD, "--reload").returncode == 0
    assert got(client, "wasmtime") == OLD
    refused = engine(daemon, "remove", NEW)
    assert refused.returncode == 1
    assert f"a daemon runs on this state directory (process {daemon.pid})" in refused.stderr
    assert f"cannot remove {NEW}: " in refused.stderr
    assert "--force" in refused.stderr
    assert (daemon.state_dir / "engines" / NEW).exists()
    forced = engine(daemon, "remove", NEW, "--force")
    assert forced.returncode == 0, forced.stderr
    assert f"(process {daemon.pid}) ends it" in forced.stderr
    assert f"`wasmkilnd reload --state-dir {daemon.state_dir}`" in forced.stderr
    # Before the reload, too: the files are gone, and so are workers that could compile.
    send(signal.SIGKILL, *workers_of(daemon.pid))
    eventually(
        lambda: _reason(client, wasm.constant(7), NEW) == "ENGINE_REMOVED",
        f"another reason: {daemon.log[-2000:]}",
        60,
    )
    reload(daemon)
    with pytest.raises(EngineRemoved, match=OLD):
        client.compile(wasm.constant(8), engine=NEW)
    eventually(lambda: got(client) == OLD, f"no worker: {daemon.log[-2000:]}", 60)


def _reason(client: Client, module: bytes, engine_id: str) -> str:
    try:
        client.compile(module, engine=engine_id)
    except Exception as error:
        return str(getattr(error, "reason", error))
    return ""


def test_an_alias_holds_a_new_engine_back_and_removing_what_a_name_stands_for_needs_force(
    tmp_path: Path,
) -> None:
    state, there = state_with(tmp_path / "state", OLD, NEW), NEW.replace("-", "==")
    held = engine(state, "install", there, WASMKILN_ENGINE_ALIAS=f"wasmtime={OLD}").stderr
    assert f"wasmtime goes on to stand for {OLD}: " in held
    assert "engine_alias" in held
    assert "goes on to stand" not in engine(state, "install", there).stderr
    refused = engine(state, "remove", NEW)
    assert refused.returncode == 1
    assert f"cannot remove {NEW}: it is wasmtime and the default" in refused.stderr
    done = engine(state, "remove", OLD)
    assert done.returncode == 0, done.stderr
    # Its callers are told so after a restart, too.
    with (
        Daemon(state, ["--redis-url", "none", "--workers", "1"]) as daemon,
        daemon.client() as client,
    ):
        assert _reason(client, wasm.constant(9), OLD) == "ENGINE_REMOVED"
    assert engine(state, "remove", NEW).returncode == 0  # The last one.


def test_what_an_operator_chooses_is_not_undone_by_an_older_warm_up(tmp_path: Path) -> None:
    state = state_with(tmp_path / "state", OLD, NEW)
    record = state / "engine-names.json"
    ordered = [
        {"engine_id": NEW, "from_engine_id": OLD, "top": 9},
        {"engine_id": "wasmer-1.1.0", "from_engine_id": "wasmer-1.0.0", "top": 9},
    ]
    record.write_text(json.dumps({"names": {"wasmtime": NEW}, "warm_ups": ordered}))
    done = engine(state, "use", OLD)
    assert done.returncode == 0, done.stderr
    told = json.loads(record.read_text())
    assert told["names"]["wasmtime"] == OLD
    assert told["warm_ups"] == ordered[1:]


def test_installing_says_which_names_stay(daemon: Daemon) -> None:
    # It is there already: nothing is fetched.
    done = engine(daemon, "install", NEW.replace("-", "==", 1))
    assert done.returncode == 0, done.stderr
    assert f"wasmtime goes on to stand for {OLD}: `wasmkilnd engine use {NEW}`" in done.stderr
    assert f"the daemon that runs (process {daemon.pid}) serves what is new" in done.stderr


def test_a_removed_one_ends_after_its_jobs(daemon: Daemon, client: Client) -> None:
    assert got(client, "wasmtime") == OLD
    with ThreadPoolExecutor(1) as threads:
        job, under_way = stopped_job(
            daemon, lambda module: threads.submit(client.compile, module, engine=OLD)
        )
        ended = daemon.log.count(ENDED)
        (daemon.state_dir / "engines" / OLD).unlink()
        reload(daemon)
        assert [each.engine.id for each in client.capabilities().engines] == [NEW]
        with pytest.raises(EngineRemoved, match=NEW):
            got(client, OLD)
        assert got(client, "wasmtime") == NEW
        assert daemon.log.count(ENDED) == ended
        os.kill(job, signal.SIGCONT)
        assert under_way.result().header.engine.id == OLD
    eventually(lambda: daemon.log.count(ENDED) > ended, "it has not ended")
    assert listed(daemon) == [NEW]
    assert daemon.metric("workers", engine=OLD) == 0


def test_one_that_fails_its_self_test_is_told_of_and_tried_again(
    daemon: Daemon, client: Client
) -> None:
    named = got(client, "wasmtime")
    copy_engine(daemon.state_dir, "50.0.92", patch=WRONG_CODE)
    reload(daemon)
    told = {each.id: each.cause for each in client.capabilities().unserved_engines}
    assert "the self-test failed" in told[BROKEN]
    assert got(client, "wasmtime") == named
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
    assert got(client, BROKEN) == BROKEN
    assert got(client, "wasmtime") == named


def test_without_any_engine_those_that_are_served_stay(daemon: Daemon, client: Client) -> None:
    engines = daemon.state_dir / "engines"
    engines.rename(daemon.state_dir / "engines-aside")
    engines.mkdir()
    reload(daemon)
    assert client.compile(wasm.adder(4)).header.size_bytes
    assert "no engine is installed: those that are served stay" in daemon.log
