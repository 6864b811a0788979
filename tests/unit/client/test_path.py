"""`wasmkiln path`, against a store that the test writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from wasmkiln.cli.app import app
from wasmkiln.v1.types_pb2 import HostFile

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
    (artifact.parents[3] / "engines.json").unlink()
    status = artifact.stat()
    daemon.host_file = HostFile(path=str(artifact), device=status.st_dev, inode=status.st_ino)
    daemon.header_changes = {"fingerprint": artifact.parents[2].name}
    daemon.artifact = artifact.read_bytes()
    assert run(str(file), "--engine", "wasmtime").stdout == f"{artifact}\n"
    artifact.chmod(0o660)
    refused = run(str(file), "--engine", "wasmtime")
    assert refused.exit_code == 1
    assert "users other than the owner can write" in refused.stderr
    calls = len(daemon.calls)
    monkeypatch.setenv("WASMKILN_HOST_STORE_DIR", "none")
    refused = run(str(file), "--json")
    assert refused.exit_code == 1
    assert "uses no host store" in refused.stderr
    assert len(daemon.calls) == calls
