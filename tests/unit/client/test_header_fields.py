"""Why a client may believe each field of an ArtifactHeader: one table, complete and true of each.

A client uses a field only after it compared the field with the call or with the artifact's bytes;
with trusted keys the attestation has to say the same. All other fields are only shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from enum import Flag, auto
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from google.protobuf.descriptor import FieldDescriptor
from wasmkiln import Artifact, ArtifactHeader, ArtifactMismatch, AttestationInvalid
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1 import types_pb2 as types

from tests.attesting import Attester
from tests.lying import honest
from tests.lying.server import LyingServer


class Basis(Flag):
    """What a field is checked against."""

    SHOWN = 0
    """Nothing: the field is only shown, or is the attestation itself."""
    CALL = auto()
    """The call, as far as the call named a value."""
    BYTES = auto()
    """The artifact's bytes, where the call asked for them."""
    ATTESTED = auto()
    """The attestation, where there are trusted keys."""


FIELDS: Mapping[str, Basis] = {
    "module_sha256": Basis.CALL | Basis.ATTESTED,
    "artifact_sha256": Basis.BYTES | Basis.ATTESTED,
    "size_bytes": Basis.BYTES,
    "engine.id": Basis.CALL,  # has to consist of the name and the version
    "engine.name": Basis.CALL | Basis.ATTESTED,
    "engine.version": Basis.CALL | Basis.ATTESTED,
    "engine.core_version": Basis.ATTESTED,
    "engine.compiler": Basis.ATTESTED,
    "target": Basis.CALL | Basis.ATTESTED,
    "cpu": Basis.CALL | Basis.ATTESTED,
    "settings": Basis.CALL | Basis.ATTESTED,
    "changed_settings": Basis.CALL | Basis.ATTESTED,
    "kind": Basis.CALL | Basis.ATTESTED,
    "fingerprint": Basis.ATTESTED,
    "inline_artifact": Basis.CALL | Basis.BYTES,
    "content_encoding": Basis.CALL,
    "offset_bytes": Basis.CALL,
    # The client compares the file that it opens with these, and with size_bytes.
    "host_file.path": Basis.CALL,
    "host_file.device": Basis.CALL,
    "host_file.inode": Basis.CALL,
    "is_fast": Basis.CALL,
    "attestation": Basis.SHOWN,
    "signer_certificate": Basis.SHOWN,
    "origin": Basis.SHOWN,
    "queue_time": Basis.SHOWN,
    "compile_time": Basis.SHOWN,
    # The attestation has a digest of these three. A client cannot compute it: the header has
    # one kind, OTHER, for everything that only components import or export.
    "imports": Basis.SHOWN,
    "exports": Basis.SHOWN,
    "types_truncated": Basis.SHOWN,
    "compatibility": Basis.SHOWN,
}

OURS = Attester()
ASKED: dict[str, Any] = {
    "engine": "wasmtime-50.0.1",
    "target": "x86_64-unknown-linux-gnu",
    "cpu": "baseline",
    "settings": {"consume_fuel": "true"},
}


def paths() -> Iterator[str]:
    """Every field of a header; those of its engine and host file each for itself."""
    for field in types.ArtifactHeader.DESCRIPTOR.fields:
        if field.message_type in (types.Engine.DESCRIPTOR, types.HostFile.DESCRIPTOR):
            yield from (f"{field.name}.{each.name}" for each in field.message_type.fields)
        else:
            yield field.name


def change(header: ArtifactHeader, path: str) -> None:
    """Make a field say something else."""
    owner: Any = header
    *before, name = path.split(".")
    for step in before:
        owner = getattr(owner, step)
    field = owner.DESCRIPTOR.fields_by_name[name]
    value = getattr(owner, name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value["consume_fuel"] = "false"
    elif field.is_repeated:
        value.add(name="another")
    elif field.message_type is not None:
        value.seconds += 1
    elif field.type == FieldDescriptor.TYPE_BYTES:
        setattr(owner, name, b"other")
    elif field.type == FieldDescriptor.TYPE_STRING:
        setattr(owner, name, f"{value[:-1]}0")
    elif field.type == FieldDescriptor.TYPE_BOOL:
        setattr(owner, name, not value)
    else:
        setattr(owner, name, value + 1)


def answer(server: LyingServer, header: ArtifactHeader) -> None:
    told = modules.CompileResponse(header=header).SerializeToString()
    server.answers["Compile"] = honest.telling("Compile", told)


def true_header() -> ArtifactHeader:
    header = honest.header(modules.CompileRequest(**ASKED))
    OURS.attest(header)
    return header


def test_the_table_is_complete() -> None:
    assert sorted(FIELDS) == sorted(paths())


SAYS = {
    "engine.id": r"calls the engine wasmtime-50\.0\.1 wasmtime-50\.0\.0",
    "engine.name": r"asked for engine wasmtime-50\.0\.1, got wasmtim0-50",
    "engine.version": r"asked for engine wasmtime-50\.0\.1, got wasmtime-50\.0\.0",
    "target": "asked for target x86_64-unknown-linux-gnu, got x86_64-unknown-linux-gn0",
    "cpu": "asked for cpu baseline, got baselin0",
    "settings": "asked for setting consume_fuel true, got false",
    "changed_settings": "asked for setting consume_fuel true, got false",
}


@pytest.mark.parametrize("path", FIELDS)
def test_each_field_is_checked_by_what_vouches_for_it(
    server: LyingServer, make_client: Callable[..., Any], path: str
) -> None:
    without = make_client(server.address, timeout_s=30)
    trusting = make_client(server.address, timeout_s=30, trusted_keys=OURS.key.hex)
    answer(server, true_header())
    for client in (without, trusting):
        assert client.compile(honest.WASM, **ASKED).bytes == honest.ARTIFACT
    header = true_header()
    change(header, path)
    answer(server, header)
    if path == "attestation" or Basis.ATTESTED in FIELDS[path]:
        with pytest.raises(AttestationInvalid):
            Artifact(b"", header).verify(OURS.key.hex)
    else:
        Artifact(b"", header).verify(OURS.key.hex)
    if FIELDS[path] & (Basis.CALL | Basis.BYTES):
        for client in (without, trusting):
            with pytest.raises(ArtifactMismatch):
                client.compile(honest.WASM, **ASKED)
        # A signature binds an artifact to its header, and not to what a call asked for.
        OURS.attest(header)
        answer(server, header)
        with pytest.raises(ArtifactMismatch, match=SAYS.get(path, "asked|artifact|says")):
            trusting.compile(honest.WASM, **ASKED)
    else:
        without.compile(honest.WASM, **ASKED)


def takes_fuel(artifact: Artifact) -> bool:
    try:
        wasmtime.Store(artifact.engine()).set_fuel(1)
    except wasmtime.WasmtimeError:
        return False
    return True


def test_an_engine_has_the_settings_that_were_asked_for_or_attested(
    server: LyingServer, make_client: Callable[..., Any], tmp_path: Path
) -> None:
    header = true_header()
    path = Artifact(honest.ARTIFACT, header).save(tmp_path / "m")
    assert takes_fuel(Artifact.open(path, trusted_keys=OURS.key.hex))
    beside = tmp_path / "m.json"
    beside.write_text(re.sub(r'"consume_fuel": "true"', '"debug_info": "true"', beside.read_text()))
    with pytest.raises(AttestationInvalid):
        Artifact.open(path, trusted_keys=OURS.key.hex).engine()
    # A header that calls a default what was asked for is believed where it is attested.
    header.changed_settings.clear()
    OURS.attest(header)
    answer(server, header)
    for keys in (None, OURS.key.hex):
        client = make_client(server.address, timeout_s=30, trusted_keys=keys)
        assert takes_fuel(client.compile(honest.WASM, **ASKED)) is (keys is None)


@pytest.mark.parametrize("asked_as", [honest.WASM, honest.WASM[:4] + b"\x0d\0\x01\0"])
def test_the_kind_is_that_of_the_module_s_bytes(
    server: LyingServer, make_client: Callable[..., Any], asked_as: bytes
) -> None:
    client = make_client(server.address, timeout_s=30)
    header = honest.header(modules.CompileRequest(module=asked_as))
    for kind in (1, 2, 7, 0):
        header.MergeFromString(bytes([0x68, kind]))
        answer(server, header)
        if kind == (1 if asked_as == honest.WASM else 2):
            client.compile(asked_as)
        else:
            with pytest.raises(ArtifactMismatch, match="of kind"):
                client.compile(asked_as)


FAST = {"strategy": "winch"}


def fast_header(**fields: Any) -> ArtifactHeader:
    """Return the header of an artifact by Winch, as the daemon sends it."""
    header = true_header()
    for settings in (header.settings, header.changed_settings):
        settings.update(FAST)
    header.is_fast = True
    for name, value in fields.items():
        setattr(header, name, value)
    return header


def test_only_who_accepts_fast_code_gets_it(
    server: LyingServer, make_client: Callable[..., Any]
) -> None:
    client = make_client(server.address, timeout_s=30)
    answer(server, fast_header())
    for asked in ({"accept_fast": True}, {"settings": {**ASKED["settings"], **FAST}}):
        assert client.compile(honest.WASM, **{**ASKED, **asked}).header.is_fast
    # An optimised artifact is what a caller that accepts both may get, too.
    answer(server, true_header())
    assert not client.compile(honest.WASM, accept_fast=True, **ASKED).header.is_fast
    # Who does not accept it gets none, and no header may hide or invent it.
    hidden, invented, another = fast_header(is_fast=False), true_header(), fast_header()
    invented.is_fast = True
    another.changed_settings["wasm_gc"] = another.settings["wasm_gc"] = "false"
    for header, accepts in (
        *((each, False) for each in (fast_header(), hidden)),
        *((each, True) for each in (hidden, invented, another)),
    ):
        answer(server, header)
        with pytest.raises(ArtifactMismatch):
            client.compile(honest.WASM, accept_fast=accepts, **ASKED)


def test_an_artifact_of_version_0_2_0_does_not_state_its_compiler(
    server: LyingServer, make_client: Callable[..., Any]
) -> None:
    answer(server, true_header())
    named = {**ASKED, "settings": {**ASKED["settings"], "strategy": "cranelift"}}
    assert make_client(server.address, timeout_s=30).compile(honest.WASM, **named).bytes
