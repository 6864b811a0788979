"""With trusted keys, nothing is handed out or loaded that none of them vouches for."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from wasmkiln import Artifact, ArtifactHeader, ArtifactMismatch, AttestationInvalid
from wasmkiln.attestation import Statement
from wasmkiln.cli.app import app
from wasmkiln.v1 import types_pb2 as types

from tests.attesting import WASM, Attester, attested

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
    with pytest.raises(AttestationInvalid) as refused:
        make(by=None).verify(OURS.key.hex)
    assert cause(refused) == "unsigned"
    with pytest.raises(AttestationInvalid, match=THEIRS.key.id) as refused:
        make(by=THEIRS).verify(OURS.key.hex)
    assert cause(refused) == "stranger"
    assert refused.value.metadata["key_id"] == THEIRS.key.id


CHANGES: list[Callable[[ArtifactHeader], Any]] = [
    lambda h: setattr(h, "module_sha256", "0" * 64),
    lambda h: setattr(h, "artifact_sha256", "0" * 64),
    lambda h: setattr(h, "fingerprint", "0" * 64),
    lambda h: setattr(h, "target", "aarch64-apple-darwin"),
    lambda h: setattr(h, "cpu", "native"),
    lambda h: setattr(h, "kind", types.KIND_COMPONENT),
    lambda h: setattr(h, "kind", types.KIND_UNSPECIFIED),
    lambda h: setattr(h.engine, "version", "2"),
    lambda h: h.settings.update({"fuel": "true"}),
    lambda h: h.changed_settings.update({"cache": "true"}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_changed_field_is_found(change: Callable[[ArtifactHeader], Any]) -> None:
    artifact = make()
    change(artifact.header)
    with pytest.raises(AttestationInvalid) as refused:
        artifact.verify(OURS.key.hex)
    assert cause(refused) == "mismatch"


def test_changed_bytes_are_found_even_with_a_header_that_fits() -> None:
    with pytest.raises(AttestationInvalid, match="bytes"):
        Artifact(b"evil", make().header).verify(OURS.key.hex)
    evil = make(b"evil", by=None)
    evil.header.attestation = make().header.attestation
    with pytest.raises(AttestationInvalid, match="another artifact sha256"):
        evil.verify(OURS.key.hex)


def test_without_any_key_there_is_nothing_to_verify_by() -> None:
    with pytest.raises(ValueError, match="no trusted key: pass"):
        make().verify()


def test_load_verifies_before_an_engine_sees_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wasmkiln import loading

    seen: list[bytes] = []

    class Module:
        @staticmethod
        def deserialize(engine: str, content: bytes) -> str:
            seen.append(content)
            return "loaded"

    nothing = SimpleNamespace(Module=Module, Store=str)
    monkeypatch.setitem(sys.modules, "nothing", nothing)
    monkeypatch.setitem(loading._ENGINES, "nothing", "")
    monkeypatch.setattr(loading, "installed", lambda _: "1")
    monkeypatch.setattr(loading, "_engine_for", lambda _name, _settings: "engine")
    monkeypatch.setattr(loading, "check_machine", lambda _target, _cpu: None)
    for signer, trusted, fits in (
        (OURS, OURS, True),
        (THEIRS, OURS, False),
        (None, OURS, False),
        (None, None, True),
    ):
        path = make(by=signer).save(tmp_path / "m.cwasm")
        opened = Artifact.open(path, trusted_keys=trusted.key.hex if trusted else None)
        seen.clear()
        if fits:
            assert opened.load() == "loaded"
        else:
            with pytest.raises(AttestationInvalid):
                opened.load()
        assert bool(seen) is fits
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


ASKED = {
    "engine": "wasmtime-50.0.1",
    "target": "x86_64-unknown-linux-gnu",
    "cpu": "x86-64-v3",
    "settings": {"consume_fuel": "true"},
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: setattr(h.engine, "version", "49.0.0"), "engine wasmtime-50.0.1, got wasmtime-"),
        (lambda h: setattr(h.engine, "name", "wasmer"), "engine wasmtime-50.0.1, got wasmer-"),
        (lambda h: setattr(h, "target", "aarch64-apple-darwin"), "target x86_64-"),
        (lambda h: setattr(h, "cpu", "native"), "cpu x86-64-v3, got native"),
        (
            lambda h: h.settings.update({"consume_fuel": "false"}),
            "setting consume_fuel true, got f",
        ),
        (lambda h: h.settings.clear(), "setting consume_fuel true, got none"),
        (lambda h: h.changed_settings.update({"nan": "true"}), "setting nan as the engine has it"),
    ],
)
@pytest.mark.parametrize("keys", [OURS.key.hex, None], ids=["trusted", "unverified"])
def test_an_honest_artifact_that_nobody_asked_for_is_refused(
    daemon: FakeDaemon,
    make_client: Callable[..., Any],
    change: Callable[[ArtifactHeader], Any],
    says: str,
    keys: str | None,
) -> None:
    client = make_client(daemon.address, timeout_s=10, trusted_keys=keys)
    daemon.tamper = signed_by(OURS)
    assert client.compile(WASM, **ASKED).verify(OURS.key.hex)

    def another(messages: list[Any]) -> list[Any]:
        change(messages[0].header)
        return signed_by(OURS)(messages)

    daemon.tamper = another
    with pytest.raises(ArtifactMismatch, match=f"asked for {says}"):
        client.compile(WASM, **ASKED)


def test_the_id_of_an_engine_is_made_of_what_is_attested(
    daemon: FakeDaemon, make_client: Callable[..., Any]
) -> None:
    client = make_client(daemon.address, timeout_s=10, trusted_keys=OURS.key.hex)

    def disguised(messages: list[Any]) -> list[Any]:
        messages[0].header.engine.version = "49.0.0"
        return signed_by(OURS)(messages)

    daemon.tamper = disguised
    for asked, says in (
        ("wasmtime", r"calls the engine wasmtime-49\.0\.0 wasmtime-50\.0\.1"),
        ("wasmtime-50.0.1", r"got wasmtime-49\.0\.0"),
    ):
        with pytest.raises(ArtifactMismatch, match=says):
            client.compile(WASM, engine=asked)


def test_a_client_without_trusted_keys_asks_for_nothing(daemon: FakeDaemon, client: Any) -> None:
    assert client.compile(WASM).bytes == daemon.artifact


# --- statements of odd types ---------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 7, ["a"], {"a": 7}, float("nan"), 10**400, True])
@pytest.mark.parametrize(
    "path",
    [
        "predicate.buildDefinition.externalParameters.engine",
        "predicate.buildDefinition.externalParameters.cpu",
        "predicate.buildDefinition.externalParameters.changedSettings",
        "predicate.runDetails.builder.version.wasmkiln",
        "predicate.runDetails.metadata.finishedOn",
        "predicate.runDetails.metadata.wasmkiln_compileTimeS",
    ],
)
def test_what_was_signed_has_the_types_of_a_statement(path: str, value: Any) -> None:
    statement = make().verify(OURS.key.hex)
    said = json.loads(statement.payload())
    *before, name = path.split(".")
    owner = said
    for step in before:
        owner = owner[step]
    if value == 7 and "compileTime" in path:
        value = "7"
    owner[name] = value
    with pytest.raises(TypeError, match="expected"):
        Statement.parse(json.dumps(said).encode())


# --- files --------------------------------------------------------------------------------


def test_compile_writes_what_verify_reads(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.tamper = signed_by(OURS)
    (tmp_path / "m.wasm").write_bytes(WASM)
    out = str(tmp_path / "m.cwasm")
    runner = CliRunner(env={"WASMKILN_ADDRESS": daemon.address})
    assert runner.invoke(app, ["compile", str(tmp_path / "m.wasm"), "-o", out]).exit_code == 0
    assert runner.invoke(app, ["verify", out, "--key", OURS.key.pem]).exit_code == 0
    runner = CliRunner(
        env={"WASMKILN_ADDRESS": daemon.address, "WASMKILN_TRUSTED_KEYS": THEIRS.key.hex}
    )
    refused = runner.invoke(app, ["compile", str(tmp_path / "m.wasm"), "-o", out + "2"])
    assert refused.exit_code == 1
    assert not Path(out + "2").exists()


def test_what_is_compiled_again_has_to_be_the_same(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.tamper = signed_by(OURS)
    module, out = str(tmp_path / "m.wasm"), str(tmp_path / "m.cwasm")
    Path(module).write_bytes(WASM)
    runner = CliRunner(env={"WASMKILN_ADDRESS": daemon.address})
    chosen = ("--cpu", "x86-64-v3", "--set", "a=b")
    assert runner.invoke(app, ["compile", module, "-o", out, *chosen]).exit_code == 0
    key = ("--key", OURS.key.hex)
    for arguments in ((out, *key), (), chosen):
        daemon.calls.clear()
        done = runner.invoke(app, ["verify", "--recompile", module, *arguments, "--json"])
        assert done.exit_code == 0, done.output
        digest = hashlib.sha256(daemon.artifact).hexdigest()
        answer = json.loads(done.stdout)
        assert (answer["artifact_sha256"], answer["recompiled_sha256"]) == (digest, digest)
        asked = daemon.requests("Compile")
        assert [each.skip_cache_lookup for each in asked] == [*[False] * (len(asked) - 1), True]
        assert all(each.omit_artifact for each in asked)
        if arguments:
            assert {(each.cpu, *each.settings.items()) for each in asked} == {
                ("x86-64-v3", ("a", "b"))
            }
    before, daemon.artifact = daemon.artifact, b"another one"
    refused = runner.invoke(app, ["verify", out, *key, "--recompile", module])
    assert refused.exit_code == 1
    assert f"not {hashlib.sha256(before).hexdigest()}" in refused.stderr
    Path(module).write_bytes(WASM + b"\0\x01\0")
    assert runner.invoke(app, ["verify", out, *key, "--recompile", module]).exit_code == 1
    assert runner.invoke(app, ["verify"]).exit_code == 2


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
