"""A true artifact, and each lie that a server in the daemon's place can tell about it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
from wasmkiln.v1.module_service_pb2 import CompileRequest, CompileResponse
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub
from wasmkiln.v1.types_pb2 import ArtifactHeader

from tests.e2e import wasm
from tests.lying.lies import about
from tests.polyglot.kiln import FULL_ENGINE, Kiln

TRUTH = "the truth"
SHOWN = frozenset(
    {"origin", "queue_time", "compile_time", "imports", "exports", "types_truncated"}
    | {"signer_certificate"}
)
"""Fields on which nothing depends, so that clients compare them with nothing."""
# A header of it has an element in each list.
_IMPORTS = '(module (import "env" "log" (func)) (func (export "f")))'


def true_answer(kiln: Kiln) -> tuple[Path, ArtifactHeader, list[bytes]]:
    """Return a module, the header of its artifact by `FULL_ENGINE`, and the artifact's chunks."""
    module = kiln.folder / "imports.wasm"
    module.write_bytes(wasm.from_text(_IMPORTS))
    request = CompileRequest(module=module.read_bytes(), engine=FULL_ENGINE)
    with grpc.insecure_channel(kiln.address) as channel:
        first, *rest = ModuleServiceStub(channel).Compile(request)
    return module, first.header, [part.chunk for part in rest]


@dataclass(frozen=True)
class HeaderLies:
    """What a server answers to a Compile of `module`, by the field that it lies about."""

    module: Path
    answers: Mapping[str, Sequence[bytes]]
    believed: frozenset[str]
    """The truth, and lies about fields that a client only shows."""


def header_lies(kiln: Kiln) -> HeaderLies:
    """Compile a module with `FULL_ENGINE`, and lie about its header, signature and bytes."""
    module, header, parts = true_answer(kiln)
    chunks = [_chunk(part) for part in parts]
    lies: dict[str, ArtifactHeader] = {TRUTH: header}
    for name, lie in about(header):
        if lie != header:
            lies.setdefault(name.partition(" ")[0], cast("ArtifactHeader", lie))
    shown = {field for field in lies if field == TRUTH or field.partition(".")[0] in SHOWN}
    for name, attestation in _attestations(header.attestation).items():
        lies[name] = ArtifactHeader()
        lies[name].CopyFrom(header)
        lies[name].attestation = attestation
    answers = {field: [_first(lie), *chunks] for field, lie in lies.items()}
    return HeaderLies(module, answers | _streams(_first(header), b"".join(parts)), frozenset(shown))


def _first(header: ArtifactHeader) -> bytes:
    return CompileResponse(header=header).SerializeToString()


def _chunk(content: bytes) -> bytes:
    return CompileResponse(chunk=content).SerializeToString()


def _attestations(true: bytes) -> dict[str, bytes]:
    """Envelopes whose signature, or key's name, is not that of the payload."""
    envelope = json.loads(true)
    [signature] = envelope["signatures"]
    payload = base64.b64decode(envelope["payload"])
    other = base64.b64encode(payload.replace(b'"core"', b'"cord"')).decode()
    forged = base64.b64encode(bytes(64)).decode()
    changed = {
        "another payload": envelope | {"payload": other},
        "another signature": envelope | {"signatures": [signature | {"sig": forged}]},
        "another signer": envelope | {"signatures": [signature | {"keyid": "0" * 64}]},
        "no signature": envelope | {"signatures": []},
    }
    return {
        name: json.dumps(each, separators=(",", ":")).encode() for name, each in changed.items()
    }


def _streams(header: bytes, content: bytes) -> dict[str, list[bytes]]:
    """Streams that are not one header, and then the artifact that it describes."""
    whole = _chunk(content)
    return {
        "nothing": [],
        "no message": [b"\xff\xfe\xfd" * 100],
        "no header": [whole],
        "two headers": [header, header, whole],
        "a header behind the bytes": [whole, header],
        "no bytes": [header],
        "too few bytes": [header, _chunk(content[:-1])],
        "too many bytes": [header, whole, _chunk(b"!")],
        "other bytes": [header, _chunk(content[:-1] + bytes([content[-1] ^ 1]))],
    }
