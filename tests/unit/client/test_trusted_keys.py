"""The ways in which a trusted key may be given."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from wasmkiln import Client, PublicKey, TrustedKeys

PRIVATE = Ed25519PrivateKey.generate()
ONE = PublicKey(PRIVATE.public_key().public_bytes_raw())
TWO = PublicKey(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
BASE64 = base64.b64encode(ONE.raw).decode()


def test_pem_is_what_other_tools_write() -> None:
    theirs = PRIVATE.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert ONE.pem.encode() == theirs
    assert ONE.id == hashlib.sha256(ONE.raw).hexdigest()


@pytest.mark.parametrize(
    "text",
    [ONE.hex, ONE.hex.upper(), BASE64, ONE.pem, f" {ONE.hex}\n"],
    ids=["hex", "upper-case", "base64", "pem", "spaces"],
)
def test_a_key_as_text(text: str) -> None:
    assert PublicKey.parse(text) == ONE
    assert dict(TrustedKeys.read(text)) == {ONE.id: ONE}


def test_files_folders_and_several_at_once(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "one.pem").write_text(ONE.pem)
    (tmp_path / "keys" / "notes.txt").write_text("no key")
    (tmp_path / "two.pem").write_text(ONE.pem + TWO.pem)
    (tmp_path / "lines").write_text(f"# fleet\n{ONE.hex}\n\n{TWO.hex}\n")
    both = {ONE.id, TWO.id}
    assert set(TrustedKeys.read(tmp_path / "keys")) == {ONE.id}
    assert set(TrustedKeys.read(tmp_path / "two.pem")) == both
    assert set(TrustedKeys.read(str(tmp_path / "lines"))) == both
    assert set(TrustedKeys.read(f"{tmp_path / 'keys'}, {TWO.hex},")) == both
    assert set(TrustedKeys.read([ONE.hex, tmp_path / "two.pem"])) == both


@pytest.mark.parametrize("text", ["hunter2", "ab" * 31, "/no/such/file", "-----BEGIN hunter2"])
def test_what_is_no_key_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match="a trusted key is") as caught:
        TrustedKeys.read(text)
    assert text not in str(caught.value)


def test_a_private_key_is_no_public_one(tmp_path: Path) -> None:
    pem = PRIVATE.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    (tmp_path / "signing.pem").write_text(pem)
    for source in (pem, str(tmp_path / "signing.pem")):
        with pytest.raises(ValueError) as caught:
            TrustedKeys.read(source)
        assert pem.splitlines()[1] not in str(caught.value)


def test_an_empty_file_trusts_nobody_rather_than_everybody(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    with pytest.raises(ValueError, match="there is no key in it"):
        Client(trusted_keys=tmp_path / "keys")
    for nothing in ("", (), " , "):
        with pytest.raises(ValueError, match="has no key in it"):
            Client(trusted_keys=nothing)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="has no key in it"):
        Client(trusted_keys=tmp_path / "folder")


def test_the_environment_counts_where_no_argument_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMKILN_TRUSTED_KEYS", f"{ONE.hex},{TWO.hex}")
    assert set(TrustedKeys.choose(None)) == {ONE.id, TWO.id}
    assert set(TrustedKeys.choose(ONE.hex)) == {ONE.id}
    monkeypatch.delenv("WASMKILN_TRUSTED_KEYS")
    assert not TrustedKeys.choose(None)
