"""A true artifact, and each lie that a server in the daemon's place can tell about its header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
from wasmkiln.v1.module_service_pb2 import CompileRequest, CompileResponse
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub
from wasmkiln.v1.types_pb2 import ArtifactHeader

from tests.e2e import wasm
from tests.header_fields import FIELDS, Basis
from tests.lying.lies import about
from tests.polyglot.kiln import FULL_ENGINE, Kiln

TRUTH = "the truth"
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
    """Compile a module with `FULL_ENGINE`, and lie about each field of its header."""
    module, header, parts = true_answer(kiln)
    chunks = [CompileResponse(chunk=part).SerializeToString() for part in parts]
    lies: dict[str, ArtifactHeader] = {TRUTH: header}
    for name, lie in about(header):
        if lie != header:
            lies.setdefault(name.partition(" ")[0], cast("ArtifactHeader", lie))
    return HeaderLies(
        module,
        {
            field: [CompileResponse(header=lie).SerializeToString(), *chunks]
            for field, lie in lies.items()
        },
        frozenset(field for field in lies if field == TRUTH or _is_only_shown(field)),
    )


def _is_only_shown(field: str) -> bool:
    basis = FIELDS.get(field, FIELDS.get(field.partition(".")[0], Basis.CALL))
    return basis is Basis.SHOWN and field != "attestation"
