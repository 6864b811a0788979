"""The attestation in the hands of programs that know DSSE, and nothing of wasmkiln."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest
from wasmkiln import Artifact

from tests.e2e import wasm
from tests.e2e.daemon import RedisDaemon
from tests.e2e.programs import ROOT
from tests.e2e.signing_keys import KeyDirectory, KeyPair
from tests.servers.debian import DebianUnavailable, cosign_binary


@pytest.fixture
def saved(daemon: RedisDaemon, tmp_path: Path) -> Artifact:
    """An artifact in m.cwasm, its attestation beside it, and keys: its own, and another."""
    with daemon.client() as client:
        artifact = client.compile(wasm.adder(1))
    artifact.save(tmp_path / "m.cwasm")
    (tmp_path / "key.pem").write_text(KeyDirectory.of(daemon.state_dir).public.pem)
    (tmp_path / "other.pem").write_text(KeyPair().public.pem)
    return artifact


def documented() -> str:
    """Return the flags of the documented command of cosign."""
    page = (ROOT / "docs" / "how-to" / "verify.md").read_text()
    [flags] = re.findall(
        r"^\$ cosign (verify-blob-attestation .*?) m\.cwasm$", page, re.MULTILINE | re.DOTALL
    )
    return str(flags).replace("\\\n", " ")


def test_cosign_verifies_the_attestation(saved: Artifact, tmp_path: Path) -> None:
    try:
        cosign = cosign_binary()
    except DebianUnavailable as why:
        pytest.skip(str(why))

    def run(flags: str) -> tuple[int, str]:
        done = subprocess.run(
            [cosign, *flags.split(), "m.cwasm"],
            cwd=tmp_path,
            env={"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    code, told = run(documented())
    assert code == 0, told
    assert "Verified OK" in told
    assert run(documented().replace("key.pem", "other.pem"))[0] != 0
    assert "predicate type" in run(documented().replace("slsaprovenance1", "spdx"))[1]
    (tmp_path / "m.cwasm").write_bytes(saved.bytes + b"\0")
    assert "digest" in run(documented())[1]


def test_openssl_verifies_the_signature(saved: Artifact, tmp_path: Path) -> None:
    """Ed25519 over the pre-authentication encoding of DSSE, as its specification has it."""
    envelope = json.loads((tmp_path / "m.cwasm.dsse.json").read_text())
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))

    def verifies(message: bytes, key: str = "key.pem") -> bool:
        (tmp_path / "message").write_bytes(message)
        verify = "openssl pkeyutl -verify -pubin -rawin -in message -sigfile signature -inkey"
        done = subprocess.run(
            [*verify.split(), key],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    assert verifies(signed)
    assert not verifies(signed + b" ")
    assert not verifies(signed, "other.pem")
