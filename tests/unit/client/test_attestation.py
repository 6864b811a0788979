"""With trusted keys, nothing is handed out or loaded that none of them vouches for."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from wasmkiln import Artifact, AttestationInvalid, Client, PublicKey, TrustedKeys
from wasmkiln.attestation import Statement
from wasmkiln.cli.app import app

from tests.attesting import WASM, Attester, attested
from tests.lying import lies

if TYPE_CHECKING:
    from tests.unit.client.fake_daemon import FakeDaemon

OURS, THEIRS = Attester(), Attester()
make = partial(attested, by=OURS)


def cause(refused: pytest.ExceptionInfo[AttestationInvalid]) -> str:
    assert refused.value.reason == "ATTESTATION_INVALID"
    return refused.value.metadata["cause"]


# --- Artifact -----------------------------------------------------------------------------


def test_verify_answers_what_was_attested() -> None:
    statement = make().verify(OURS.key.hex)
    assert statement.daemon_version == "1.2.3"
    assert statement.claims.engine["coreVersion"] == "2"
    assert make().verify([THEIRS.key.hex, OURS.key.hex]) == statement


def test_unsigned_and_strangers() -> None:
    for by, what in ((None, "unsigned"), (THEIRS, "stranger")):
        with pytest.raises(AttestationInvalid) as refused:
            make(by=by).verify(OURS.key.hex)
        assert cause(refused) == what
    assert refused.value.metadata["key_id"] == THEIRS.key.id
    with pytest.raises(ValueError, match="no trusted key: pass"):
        make().verify()


def test_changed_bytes_are_found_even_with_a_header_that_fits() -> None:
    with pytest.raises(AttestationInvalid, match="bytes"):
        Artifact(b"evil", make().header).verify(OURS.key.hex)
    evil = make(b"evil", by=None)
    evil.header.attestation = make().header.attestation
    with pytest.raises(AttestationInvalid, match="another artifact sha256"):
        evil.verify(OURS.key.hex)


def test_load_verifies_before_an_engine_sees_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("wasmkiln.loading._import", lambda *_: seen.append("the engine"))
    for signer, trusted, is_seen in (
        (OURS, OURS, True),
        (THEIRS, OURS, False),
        (None, OURS, False),
        (None, None, True),
    ):
        path = make(by=signer).save(tmp_path / "m.cwasm")
        opened = Artifact.open(path, trusted_keys=trusted.key.hex if trusted else None)
        seen.clear()
        with pytest.raises(KeyError if is_seen else AttestationInvalid):
            opened.load()
        assert bool(seen) is is_seen
    monkeypatch.setenv("WASMKILN_TRUSTED_KEYS", OURS.key.hex)
    with pytest.raises(AttestationInvalid):
        Artifact.open(path).load()


def test_save_writes_the_attestation_beside_and_leaves_no_old_one(tmp_path: Path) -> None:
    path = make().save(tmp_path / "m.cwasm")
    beside = tmp_path / "m.cwasm.dsse.json"
    assert beside.read_bytes() == make().header.attestation
    make(by=None).save(path)
    assert not beside.exists()


# --- Client -------------------------------------------------------------------------------


def signed_by(attester: Attester) -> Callable[[list[Any]], list[Any]]:
    def tamper(messages: list[Any]) -> list[Any]:
        attester.attest(messages[0].header)
        return messages

    return tamper


@pytest.mark.parametrize("omit_artifact", [False, True])
def test_a_client_with_trusted_keys_takes_only_what_they_vouch_for(
    daemon: FakeDaemon, make_client: Callable[..., Any], omit_artifact: bool
) -> None:
    client = make_client(daemon.address, timeout_s=10, trusted_keys=OURS.key.hex)
    with pytest.raises(AttestationInvalid) as refused:
        client.compile(WASM, omit_artifact=omit_artifact)
    assert cause(refused) == "unsigned"
    daemon.tamper = signed_by(THEIRS)
    with pytest.raises(AttestationInvalid) as refused:
        client.compile(WASM, omit_artifact=omit_artifact)
    assert cause(refused) == "stranger"
    daemon.tamper = signed_by(OURS)
    artifact = client.compile(WASM, omit_artifact=omit_artifact)
    assert artifact.trusted_keys.get(OURS.key.id) == OURS.key
    assert artifact.verify().daemon_version == "1.2.3"


# --- statements of odd types ---------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 7, ["a"], {"a": 7}, float("nan"), 10**400, True])
@pytest.mark.parametrize(
    "path",
    [
        *("buildDefinition.externalParameters.cpu", "runDetails.builder.version.wasmkiln"),
        "buildDefinition.externalParameters.engine",
        "runDetails.metadata.wasmkiln_compileTimeS",
    ],
)
def test_what_was_signed_has_the_types_of_a_statement(path: str, value: Any) -> None:
    said = json.loads(make().verify(OURS.key.hex).payload())
    owner, (*before, name) = said["predicate"], path.split(".")
    for step in before:
        owner = owner[step]
    owner[name] = "7" if value == 7 else value
    if name in ("cpu", "wasmkiln") and value == 7:
        owner[name] = 7
    with pytest.raises(TypeError, match="expected"):
        Statement.parse(json.dumps(said).encode())


# --- trusted keys --------------------------------------------------------------------------

PRIVATE = Ed25519PrivateKey.generate()
ONE = PublicKey(PRIVATE.public_key().public_bytes_raw())
TWO = THEIRS.key


@pytest.mark.parametrize(
    "text",
    [ONE.hex, ONE.hex.upper(), base64.b64encode(ONE.raw).decode(), ONE.pem, f" {ONE.hex}\n"],
    ids=["hex", "upper-case", "base64", "pem", "spaces"],
)
def test_a_key_as_text(text: str) -> None:
    assert dict(TrustedKeys.read(text)) == {ONE.id: ONE}
    theirs = PRIVATE.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert ONE.pem.encode() == theirs
    assert ONE.id == hashlib.sha256(ONE.raw).hexdigest()


def test_files_folders_and_several_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, pem, lines = tmp_path / "keys", tmp_path / "two.pem", tmp_path / "lines"
    folder.mkdir()
    (folder / "one.pem").write_text(ONE.pem)
    (folder / "notes.txt").write_text("no key")
    pem.write_text(ONE.pem + TWO.pem)
    lines.write_text(f"# fleet\n{ONE.hex}\n\n{TWO.hex}\n")
    assert set(TrustedKeys.read(folder)) == {ONE.id}
    sources: list[Any] = [pem, str(lines), f"{folder}, {TWO.hex},", [ONE.hex, pem]]
    for both in sources:
        assert set(TrustedKeys.read(both)) == {ONE.id, TWO.id}
    assert not TrustedKeys.choose(None)
    monkeypatch.setenv("WASMKILN_TRUSTED_KEYS", f"{ONE.hex},{TWO.hex}")
    assert set(TrustedKeys.choose(None)) == {ONE.id, TWO.id}
    chosen = TrustedKeys.choose(ONE.hex)
    assert set(chosen) == {ONE.id}
    assert TrustedKeys.choose(chosen) is chosen


def test_what_is_no_key_is_refused_without_quoting_it(tmp_path: Path) -> None:
    private = PRIVATE.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    (tmp_path / "signing.pem").write_text(private)
    secret = private.splitlines()[1]
    for text in ("hunter2", "ab" * 31, "/no/such/file", "no.pem", "-----BEGIN hunter2", private):
        with pytest.raises(ValueError, match="a trusted key is") as caught:
            TrustedKeys.read(text)
        assert text not in str(caught.value)
        assert secret not in str(caught.value)
    with pytest.raises(ValueError, match="expected Ed25519 public keys") as caught:
        TrustedKeys.read(tmp_path / "signing.pem")
    assert secret not in str(caught.value)


def test_an_empty_source_trusts_nobody_rather_than_everybody(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="expected Ed25519 public keys"):
        Client(trusted_keys=tmp_path / "keys")
    for nothing in ("", (), " , ", tmp_path / "folder"):
        with pytest.raises(ValueError, match="has no key in it"):
            Client(trusted_keys=nothing)


# --- the command --------------------------------------------------------------------------


@pytest.fixture
def command(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command in a folder with m.wasm; the daemon signs."""
    daemon.tamper = signed_by(OURS)
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.chdir(tmp_path)
    Path("m.wasm").write_bytes(WASM)
    return lambda *arguments: CliRunner().invoke(app, arguments)


KEY = ("--key", OURS.key.hex)


def test_compile_writes_what_verify_reads(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("compile", "m.wasm", "-o", "m.cwasm").exit_code == 0
    assert command("verify", "m.cwasm", "--key", OURS.key.pem).exit_code == 0
    Path("m.cwasm.dsse.json").unlink()
    alone = command("verify", "m.cwasm", *KEY)
    assert alone.exit_code == 2
    assert "give the attestation with --attestation" in alone.stderr
    monkeypatch.setenv("WASMKILN_TRUSTED_KEYS", THEIRS.key.hex)
    assert command("compile", "m.wasm", "-o", "none").exit_code == 1
    assert not Path("none").exists()


def test_verify(command: Any) -> None:
    path = make().save("a.cwasm")
    run = partial(command, "verify", "a.cwasm")
    done = run(*KEY, "--module", "m.wasm", "--fingerprint", "F" * 64)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert OURS.key.id in done.stdout
    answer = json.loads(run(*KEY, "--json").stdout)
    assert answer["verified"] is True
    assert answer["not_checked"] == ["module", "fingerprint"]
    assert (answer["key_id"], answer["engine"]["name"]) == (OURS.key.id, "nothing")
    for given, told in (
        ((), ["give --module", "give --fingerprint"]),
        (("--fingerprint", "f" * 64), ["give --module"]),
        (("--module", "m.wasm"), ["give --fingerprint"]),
    ):
        lines = run(*KEY, *given).stderr.splitlines()
        assert [line.split(": ")[-1] for line in lines] == told
        assert all(line.startswith("not checked: whether it is ") for line in lines)
    for wrong in (
        ("--key", THEIRS.key.hex),
        (*KEY, "--module", "0" * 64),
        (*KEY, "--fingerprint", "0" * 64),
        (*KEY, "--attestation", "a.cwasm"),
    ):
        refused = run(*wrong, "--json")
        assert (refused.exit_code, refused.stdout) == (1, "")
        error = json.loads(refused.stderr.splitlines()[1])["error"]
        assert error["reason"] == "ATTESTATION_INVALID"
    assert command("verify").exit_code == run().exit_code == run("--key", "none").exit_code == 2
    path.write_bytes(b"evil")
    assert run(*KEY).exit_code == 1


def test_verify_shows_no_control_character_of_what_was_signed(command: Any) -> None:
    artifact = make(by=None)
    header = artifact.header
    for field in ("module_sha256", "fingerprint", "target", "cpu"):
        setattr(header, field, lies.EVIL)
    header.engine.name = header.engine.version = lies.EVIL
    header.settings[lies.EVIL] = lies.EVIL
    OURS.attest(header)
    artifact.save("a.cwasm")
    for form in ((), ("--json",)):
        done = command("verify", "a.cwasm", *KEY, *form)
        assert done.exit_code == 0, done.output
        assert all(line.isprintable() for line in done.output.splitlines())
    refused = command("verify", "a.cwasm", *KEY, "--fingerprint", "f")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)


def test_what_is_compiled_again_has_to_be_the_same(command: Any, daemon: FakeDaemon) -> None:
    chosen = ("--cpu", "x86-64-v3", "--set", "a=b")
    assert command("compile", "m.wasm", "-o", "m.cwasm", *chosen).exit_code == 0
    digest = hashlib.sha256(daemon.artifact).hexdigest()
    for arguments in (("m.cwasm", *KEY), (), chosen):
        daemon.calls.clear()
        done = command("verify", "--recompile", "m.wasm", *arguments, "--json")
        assert done.exit_code == 0, done.output
        answer = json.loads(done.stdout)
        assert (answer["artifact_sha256"], answer["recompiled_sha256"]) == (digest, digest)
        asked = daemon.requests("Compile")
        assert [each.skip_cache_lookup for each in asked] == [*[False] * (len(asked) - 1), True]
        assert all(each.omit_artifact for each in asked)
        if arguments:
            said = {(each.cpu, *each.settings.items()) for each in asked}
            assert said == {("x86-64-v3", ("a", "b"))}
    daemon.artifact = b"another one"
    again = ("verify", "m.cwasm", *KEY, "--recompile", "m.wasm")
    refused = command(*again)
    assert refused.exit_code == 1
    assert f"not {digest}" in refused.stderr
    Path("m.wasm").write_bytes(WASM + b"\0\x01\0")
    assert command(*again).exit_code == 1


# --- without the extra --------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules['cryptography'] = None
from wasmkiln import Artifact, VerificationNotInstalled
try:
    Artifact.open(sys.argv[1], trusted_keys=sys.argv[2]).verify()
except VerificationNotInstalled as error:
    print(error)
"""


def test_without_the_package_it_is_one_clear_sentence(tmp_path: Path) -> None:
    path = make().save(tmp_path / "m.cwasm")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(path), OURS.key.hex],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "checking attestations needs cryptography: pip install 'wasmkiln[verify]'\n"
    )
