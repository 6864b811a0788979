"""The attestation in the hands of programs that know DSSE, and nothing of wasmkiln."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from wasmkiln import Artifact

from tests.e2e import wasm
from tests.e2e.daemon import RedisDaemon
from tests.e2e.programs import ROOT
from tests.e2e.signing_keys import KeyDirectory, KeyPair
from tests.servers.debian import DebianUnavailable, cosign_binary

PAGE = (ROOT / "docs" / "how-to" / "verify.md").read_text()


@pytest.fixture
def saved(daemon: RedisDaemon, tmp_path: Path) -> Artifact:
    """An artifact in m.cwasm, its attestation beside it, and keys: its own, and another."""
    with daemon.client() as client:
        artifact = client.compile(wasm.adder(1))
    artifact.save(tmp_path / "m.cwasm")
    (tmp_path / "key.pem").write_text(KeyDirectory.of(daemon.state_dir).public.pem)
    (tmp_path / "other.pem").write_text(KeyPair().public.pem)
    return artifact


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program that verifies."""
    return subprocess.run(
        words,
        cwd=folder,
        env={"HOME": str(folder), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )


def test_cosign_verifies_the_attestation(saved: Artifact, tmp_path: Path) -> None:
    try:
        cosign = cosign_binary()
    except DebianUnavailable as why:
        pytest.skip(str(why))
    command = r"^\$ cosign (verify-blob-attestation .*?) m\.cwasm$"
    [documented] = re.findall(command, PAGE, re.MULTILINE | re.DOTALL)
    documented = documented.replace("\\\n", " ")

    def told(flags: str) -> tuple[int, str]:
        done = run(tmp_path, cosign, *flags.split(), "m.cwasm")
        return done.returncode, done.stderr

    code, said = told(documented)
    assert code == 0, said
    assert "Verified OK" in said
    assert told(documented.replace("key.pem", "other.pem"))[0] != 0
    assert "predicate type" in told(documented.replace("slsaprovenance1", "spdx"))[1]
    (tmp_path / "m.cwasm").write_bytes(saved.bytes + b"\0")
    assert "digest" in told(documented)[1]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_program_of_the_documentation(saved: Artifact, tmp_path: Path) -> None:
    [program] = re.findall(r"^```js\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "verify.js").write_text(program)
    path, sha256 = tmp_path / "m.cwasm", saved.header.module_sha256

    def verified(key: str = "key.pem", module: str = sha256, fingerprint: str = "") -> str:
        words = (key, module, fingerprint or saved.header.fingerprint)
        done = run(tmp_path, "node", "verify.js", path.name, *words)
        assert done.returncode == (0 if done.stdout else 1), done.stderr
        return done.stdout

    assert saved.header.engine.version in verified()
    assert not verified(module="0" * 64)
    assert not verified(fingerprint="0" * 64)
    assert not verified("other.pem")
    path.write_bytes(saved.bytes[:-1] + b"\0\0")
    assert not verified()
    path.write_bytes(saved.bytes)
    beside = tmp_path / "m.cwasm.dsse.json"
    envelope = json.loads(beside.read_text())
    envelope["payloadType"] = "text/plain"
    beside.write_text(json.dumps(envelope))
    assert not verified()
    assert Artifact.open(path).header == saved.header
