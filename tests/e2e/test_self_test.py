"""The daemon does not serve engines that do not work, says why, and serves the others."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from wasmkiln import EngineUnknown, WorkerUnavailable

from tests.e2e import wasm
from tests.e2e.broken_engines import DIES, GARBAGE, WRONG_CODE, copy_engine, replace
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually, workers_and_jobs, workers_of
from tests.e2e.programs import Installed
from tests.e2e.test_daemon import get

FLAGS = ["--redis-url", "none", "--workers", "1"]


def break_six(state: Path) -> dict[str, str]:
    """Put six broken engines into a state directory; return the cause for each."""
    copy_engine(state, "50.0.91", patch=GARBAGE)
    copy_engine(state, "50.0.92", patch=WRONG_CODE)
    copy_engine(state, "50.0.93", patch=DIES)
    [library] = copy_engine(state, "50.0.94").glob("linux-*/*.so")
    replace(library, library.read_bytes()[:100_000])
    copy_engine(state, "50.0.95", says="49.9.9")
    (state / "engines" / "wasmtime-50.0.96").mkdir()
    return {
        "wasmtime-50.0.91": "the self-test failed",
        "wasmtime-50.0.92": "the self-test failed: its code returned -1 for 2 + 3",
        "wasmtime-50.0.93": "SIGABRT",
        "wasmtime-50.0.94": "a wasmtime worker did not start: it ended with status -",
        "wasmtime-50.0.95": "it calls itself wasmtime-49.9.9",
        "wasmtime-50.0.96": "it is damaged: install it again",
    }


def test_engines_that_fail_are_left_out_and_told_of(engines: Installed, tmp_path: Path) -> None:
    state = fresh_state(tmp_path / "state", engines=["wasmer-1.1.0"])
    blamed = break_six(state)
    with (
        Daemon(state, [*FLAGS, "--default-engine", "wasmtime-50.0.92"]) as daemon,
        daemon.client(max_attempts=1) as client,
    ):
        capabilities = client.capabilities()
        assert [engine.engine.id for engine in capabilities.engines] == ["wasmer-1.1.0"]
        unserved = {engine.id: engine.cause for engine in capabilities.unserved_engines}
        assert unserved.keys() == blamed.keys()
        status, detail = get(f"{daemon.admin_url}/readyz")
        assert status == 200
        assert detail.startswith("ready; ")
        for engine, words in blamed.items():
            assert words in unserved[engine]
            assert "\n" not in unserved[engine]
            assert unserved[engine] in detail
            assert f"{engine} is not served: {unserved[engine]}" in daemon.banner
            daemon.wait_for_log(f'"engine is not served", "engine": "{engine}"')
        assert "Traceback" not in daemon.log

        assert client.health() == "SERVING"
        assert client.compile(wasm.adder(1), engine="wasmer").header.size_bytes
        with pytest.raises(EngineUnknown, match=r"wasmer-1\.1\.0"):
            client.compile(wasm.adder(1), engine="wasmtime")
        # No other engine takes the place of the default: its artifacts would be of no use.
        with pytest.raises(EngineUnknown, match=r"'wasmtime-50\.0\.92'"):
            client.compile(wasm.adder(1))


def test_no_engine_that_works_is_not_ready(engines: Installed, tmp_path: Path) -> None:
    state = tmp_path / "state"
    copy_engine(state, "50.0.91", patch=GARBAGE)
    with Daemon(state, FLAGS) as daemon, daemon.client(max_attempts=1) as client:
        assert client.health() == "NOT_SERVING"
        assert client.health("wasmkiln.v1.ModuleService") == "NOT_SERVING"
        status, detail = get(f"{daemon.admin_url}/readyz")
        assert status == 503
        assert detail.startswith("no engine works; wasmtime-50.0.91 is not served: the self-test")
        assert "none works" in daemon.banner
        with pytest.raises(EngineUnknown):
            client.compile(wasm.adder(1))
        assert not workers_and_jobs(daemon.pid)


def test_the_health_follows_the_workers(engines: Installed, tmp_path: Path) -> None:
    """All workers gone for good: not serving. Back again: serving."""
    state = tmp_path / "state"
    copy_engine(state, "50.0.90")
    python = state / "engines" / "wasmtime-50.0.90" / "bin" / "python"
    with Daemon(state, FLAGS) as daemon, daemon.client(max_attempts=1) as client:
        first = client.compile(wasm.adder(1))
        assert client.health() == "SERVING"
        python.rename(python.with_name("gone"))
        for _ in range(2):
            [worker] = workers_of(daemon.pid)
            os.kill(worker, signal.SIGKILL)
            eventually(lambda: client.health() == "NOT_SERVING", "still serving")
            status, detail = get(f"{daemon.admin_url}/readyz")
            assert status == 503
            assert "no engine works; wasmtime-50.0.90 has no worker: " in detail
            with pytest.raises(WorkerUnavailable, match="operator"):
                client.compile(wasm.adder(2))
            # What is in a tier needs no worker.
            assert client.compile(first.header.module_sha256).header.origin == 1
            python.with_name("gone").rename(python)
            eventually(lambda: client.health() == "SERVING", "not serving again", 60)
            assert get(f"{daemon.admin_url}/readyz") == (200, "ready\n")
            assert client.compile(wasm.adder(3), skip_cache_lookup=True).header.size_bytes
            python.rename(python.with_name("gone"))
        events = [line for line in daemon.log_lines if '"not serving"' in line]
        assert len(events) == 2
