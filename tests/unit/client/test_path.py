"""`wasmkiln path`, against a store that the test writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from wasmkiln.cli.app import app

from tests.e2e import wasm
from tests.host_store_writer import StoreWriter
from tests.unit.client.fake_daemon import FakeDaemon


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ("path", *arguments))


def test_path(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreWriter(tmp_path / "store")
    module = wasm.adder(7)
    file = tmp_path / "adder.wasm"
    file.write_bytes(module)
    artifact = store.add(module)
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.setenv("WASMKILN_HOST_STORE_DIR", str(store.directory))
    digest = hashlib.sha256(module).hexdigest()
    for source in (str(file), digest):
        assert run(source, "--engine", "wasmtime").stdout == f"{artifact}\n"
    assert json.loads(run(str(file), "--json").stdout) == {"path": str(artifact)}
    assert not daemon.calls, "what is there already needs no call"
    refused = run(str(file), "--set", "consume_fuel=true")
    assert refused.exit_code == 1
    assert "host_store_bytes" in refused.stderr
    assert daemon.requests("Compile")[-1].accept_host_file
