"""Callers of a name get what they got before, until the operator says otherwise."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmkiln import Client, EngineRemoved

from tests.e2e import wasm
from tests.e2e.daemon import FAILED, Configured, Daemon, reload, state_with
from tests.e2e.processes import eventually, send, workers_of
from tests.e2e.programs import WASMKILND, Installed, run
from tests.e2e.test_engine_changes import NEW, OLD, install, listed

GONE = "wasmtime-48.0.0"


@pytest.fixture(scope="module")
def configured(
    engines: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Configured]:
    """A daemon with the old engine and a file of settings; then the new one is installed."""
    running = Configured(state_with(tmp_path_factory.mktemp("names") / "state", OLD))
    with running.daemon as daemon:
        install(daemon, NEW)
        reload(daemon)
        yield running


@pytest.fixture
def daemon(configured: Configured) -> Daemon:
    return configured.daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client(timeout_s=120) as one:
        yield one


def engine(
    daemon: Daemon | Path, *command: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    state = daemon if isinstance(daemon, Path) else daemon.state_dir
    return run(WASMKILND, "engine", *command, "--state-dir", state, **environ)


def got(client: Client, name: str = "") -> str:
    return client.compile(wasm.adder(1), engine=name).header.engine.id


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


def test_an_alias_decides_and_follows_a_reload(configured: Configured, client: Client) -> None:
    daemon = configured.daemon
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


def test_installing_says_which_names_stay(daemon: Daemon) -> None:
    # It is there already: nothing is fetched.
    for engine_id in (OLD, NEW):
        if not (daemon.state_dir / "engines" / engine_id).exists():
            install(daemon, engine_id)
    done = engine(daemon, "install", NEW.replace("-", "==", 1))
    assert done.returncode == 0, done.stderr
    assert f"wasmtime goes on to stand for {OLD}: `wasmkilnd engine use {NEW}`" in done.stderr
    assert f"the daemon that runs (process {daemon.pid}) serves what is new" in done.stderr
