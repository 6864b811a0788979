"""Signed artifacts, with real daemons and a real Valkey that an attacker may write to."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from wasmkiln import Artifact, AttestationInvalid, Client
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, TWO_ENGINES, RedisDaemon, fresh_state
from tests.e2e.programs import ROOT, Installed
from tests.e2e.signing_keys import KeyDirectory, KeyPair
from tests.e2e.stored_values import rejected
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server


@pytest.fixture
def valkey(tmp_path: Path, engines: Installed) -> Iterator[str]:
    """A Valkey to which every daemon of a test is connected."""
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running.url


def origin_for_another(
    one: Mapping[str, str], two: Mapping[str, str], tmp_path: Path, valkey: str
) -> tuple[types_pb2.Origin, str, dict[str, int]]:
    """Compile in one daemon, ask another with keys of its own; return origin, log, rejections."""
    environ = {"WASMKILN_REDIS_URL": valkey}
    states = [
        fresh_state(tmp_path / name, own_keys=True, engines=ONE_ENGINE) for name in ("one", "two")
    ]
    with RedisDaemon(states[0], environ={**environ, **one}) as first, first.client() as client:
        for tag in (1, 2):
            client.compile(wasm.adder(tag))
        settled(client)
        with (
            RedisDaemon(states[1], environ={**environ, **two}) as second,
            second.client() as client,
        ):
            origins = {client.compile(wasm.adder(tag)).header.origin for tag in (1, 2)}
            counted = rejected(second)
            settled(client)
        log = first.log + second.log + first.banner + second.banner
    (origin,) = origins
    return origin, log, counted


def test_daemons_with_different_keys_do_not_believe_each_other(valkey: str, tmp_path: Path) -> None:
    one, two = ({"WASMKILN_KEYS_DIR": str(tmp_path / name / "keys")} for name in ("one", "two"))
    origin, log, counted = origin_for_another(one, two, tmp_path, valkey)
    assert origin == COMPILED
    assert counted == {"stranger": 4}  # artifacts, and then the modules
    [line] = [line for line in log.splitlines() if "stored value rejected" in line]  # once
    stranger = KeyDirectory.of(tmp_path / "one").public
    assert stranger.id in line
    assert "WASMKILN_KEYS_DIR" in line


def test_daemons_that_were_told_of_no_keys_do_not_either(valkey: str, tmp_path: Path) -> None:
    origin, log, counted = origin_for_another({}, {}, tmp_path, valkey)
    assert origin == COMPILED
    assert set(counted) == {"stranger"}
    assert "WASMKILN_SIGNING_KEY" in log


def test_daemons_that_share_a_key_directory_do(valkey: str, tmp_path: Path) -> None:
    shared = {"WASMKILN_KEYS_DIR": str(tmp_path / "shared")}
    origin, _, counted = origin_for_another(shared, shared, tmp_path, valkey)
    assert (origin, counted) == (REDIS, {})


def test_daemons_that_share_a_key_by_environment_do(valkey: str, tmp_path: Path) -> None:
    key = KeyPair()
    shared = {"WASMKILN_SIGNING_KEY": key.pem}
    origin, log, counted = origin_for_another(shared, shared, tmp_path, valkey)
    assert (origin, counted) == (REDIS, {})
    assert not (tmp_path / "one" / "keys").exists()
    assert key.public.id in log
    for secret in (key.base64, key.pem.splitlines()[1]):
        assert secret not in log


def test_a_daemon_that_trusts_the_other_s_public_key_does(valkey: str, tmp_path: Path) -> None:
    key = KeyPair()
    origin, _, counted = origin_for_another(
        {"WASMKILN_SIGNING_KEY": key.base64},
        {"WASMKILN_TRUSTED_KEYS": key.public.hex},
        tmp_path,
        valkey,
    )
    assert (origin, counted) == (REDIS, {})


def test_rotation_loses_no_artifact_even_while_the_other_daemon_runs(
    valkey: str, tmp_path: Path
) -> None:
    environ = {"WASMKILN_REDIS_URL": valkey}
    a, b = (
        fresh_state(tmp_path / "a", engines=ONE_ENGINE),
        fresh_state(tmp_path / "b", engines=ONE_ENGINE),
    )
    with RedisDaemon(a, environ=environ) as running, running.client() as old:
        old.compile(wasm.adder(1))
        settled(old)
        KeyDirectory.of(b).run("rotate")
        with RedisDaemon(b, environ=environ) as restarted, restarted.client() as new:
            assert new.compile(wasm.adder(1)).header.origin == REDIS
            new.compile(wasm.adder(2))
            settled(new)
        assert old.compile(wasm.adder(2)).header.origin == REDIS


def test_the_first_start_makes_safe_keys_and_the_client_believes_them(
    engines: Installed, tmp_path: Path
) -> None:
    state = fresh_state(tmp_path / "state", own_keys=True, engines=TWO_ENGINES)
    with RedisDaemon(state, ["--redis-url", "none"]) as daemon:
        assert stat.S_IMODE((state / "keys").stat().st_mode) == 0o700
        assert stat.S_IMODE((state / "keys" / "signing.pem").stat().st_mode) == 0o600
        with Client(daemon.address, trusted_keys=state / "keys" / "trusted") as client:
            artifact = client.compile(wasm.adder(1), engine="wasmtime")
            assert artifact.verify().claims.module_sha256 == artifact.header.module_sha256
            assert artifact.load()
        with (
            Client(daemon.address, trusted_keys=KeyPair().public.hex) as client,
            pytest.raises(AttestationInvalid, match="not trusted"),
        ):
            client.compile(wasm.adder(1), engine="wasmtime")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_program_of_the_documentation(daemon: RedisDaemon, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to" / "verify.md").read_text()
    [program] = re.findall(r"^```js\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "verify.js").write_text(program)
    with daemon.client() as client:
        artifact = client.compile(wasm.adder(3))
    path = artifact.save(tmp_path / "m.cwasm")
    key = KeyDirectory.of(daemon.state_dir).public
    (tmp_path / "key.pem").write_text(key.pem)
    (tmp_path / "other.pem").write_text(KeyPair().public.pem)

    def run(
        module: str = artifact.header.module_sha256,
        fingerprint: str = artifact.header.fingerprint,
        pem: str = "key.pem",
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["node", "verify.js", path.name, pem, module, fingerprint],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    good = run()
    assert good.returncode == 0, good.stderr
    assert artifact.header.engine.version in good.stdout
    for bad in (run(module="0" * 64), run(fingerprint="0" * 64), run(pem="other.pem")):
        assert bad.returncode == 1
        assert bad.stdout == ""
    path.write_bytes(artifact.bytes[:-1] + b"\0\0")
    assert run().returncode == 1
    path.write_bytes(artifact.bytes)
    beside = tmp_path / "m.cwasm.dsse.json"
    envelope = json.loads(beside.read_text())
    envelope["payloadType"] = "text/plain"
    beside.write_text(json.dumps(envelope))
    assert run().returncode == 1
    assert Artifact.open(path).header == artifact.header
