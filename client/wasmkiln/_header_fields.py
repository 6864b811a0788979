"""Why the client may believe each field of an ArtifactHeader: one table, complete by a test.

The client uses a field only after it compared the field with the call or with the artifact's
bytes; with trusted keys the attestation has to say the same. All other fields are only shown:
no path, no engine and no decision depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import TYPE_CHECKING

from wasmkiln._untrusted import quoted
from wasmkiln.errors import ArtifactMismatch
from wasmkiln.v1.types_pb2 import KIND_COMPONENT, KIND_CORE_MODULE, ArtifactHeader, Engine, Kind

if TYPE_CHECKING:
    from wasmkiln.v1.module_service_pb2 import CompileRequest

# A module's first eight bytes: magic number, version, and layer, which marks a component.
_KINDS = {
    b"\0asm\x01\0\0\0": KIND_CORE_MODULE,
    b"\0asm\x0d\0\x01\0": KIND_COMPONENT,
}


# By an engine's name: the setting and the value that choose its fast compiler.
FAST = {"wasmtime": ("strategy", "winch"), "wasmer": ("compiler", "singlepass")}
# Settings that artifacts of earlier wasmkilns do not state, and what these artifacts have.
_UNSTATED = {"strategy": "cranelift", "compiler": "cranelift", "collector": "drc"}


class Basis(Flag):
    """What a field is checked against."""

    SHOWN = 0
    """Nothing: the field is only shown, or is the proof itself: the attestation, and the
    certificate of its key, which a trusted CA has to have issued."""
    CALL = auto()
    """The call, as far as the call named a value."""
    BYTES = auto()
    """The artifact's bytes, where the call asked for them."""
    ATTESTED = auto()
    """The attestation, where there are trusted keys."""


@dataclass(frozen=True)
class Call:
    """What the caller of a compile asked for."""

    request: CompileRequest
    module_sha256: str
    kind: Kind | None
    """None where the client does not have the module's bytes."""


Differences = Iterator[str]
Comparison = Callable[[Call, ArtifactHeader], Differences]


def kind_of(module: bytes | None) -> Kind | None:
    """Return the kind in a module's preamble. Return None for an unknown one, or no bytes."""
    return _KINDS.get(module[:8]) if module is not None else None


def engine_id(engine: Engine) -> str:
    """Return an engine's id, made from its attested name and version."""
    return f"{engine.name}-{engine.version}"


def check(call: Call, header: ArtifactHeader) -> None:
    """Raise ArtifactMismatch when a header is not about what the call asked for."""
    for compare in _COMPARISONS:
        for difference in compare(call, header):
            raise ArtifactMismatch(difference)


def _differs(what: str, asked: str, got: str) -> str:
    return f"asked for {what} {quoted(asked)}, got {quoted(got) or 'none'}"


def _module(call: Call, header: ArtifactHeader) -> Differences:
    if header.module_sha256 != call.module_sha256:
        yield _differs("an artifact of module", call.module_sha256, header.module_sha256)


def _engine(call: Call, header: ArtifactHeader) -> Differences:
    asked, name, full = call.request.engine, header.engine.name, engine_id(header.engine)
    if asked and asked not in (name, full):
        yield _differs("engine", asked, full)
    # Attestations do not have the id, and callers name files after it.
    if header.engine.id != full:
        yield f"the header calls the engine {quoted(full)} {quoted(header.engine.id) or 'nothing'}"


def _target(call: Call, header: ArtifactHeader) -> Differences:
    if call.request.target and call.request.target != header.target:
        yield _differs("target", call.request.target, header.target)


def _cpu(call: Call, header: ArtifactHeader) -> Differences:
    if call.request.cpu and call.request.cpu != header.cpu:
        yield _differs("cpu", call.request.cpu, header.cpu)


def _settings(call: Call, header: ArtifactHeader) -> Differences:
    asked: Mapping[str, str] = call.request.settings
    for name, value in asked.items():
        got = header.settings.get(name, _UNSTATED.get(name, ""))
        if value != got:
            yield _differs(f"setting {quoted(name)}", value, got)
    fast = FAST.get(header.engine.name) if header.is_fast else None
    # A setting that the call did not name has to have the engine's default, apart from the one
    # that makes the artifact a fast one: see _delivery.
    for name, value in header.changed_settings.items():
        if value != asked.get(name) and (name, value) != fast:
            default = asked.get(name, "as the engine has it")
            yield _differs(f"setting {quoted(name)}", default, value)


def _kind(call: Call, header: ArtifactHeader) -> Differences:
    if call.kind is not None and header.kind != call.kind:
        yield f"asked for an artifact of kind {call.kind}, got one of kind {header.kind}"


def _delivery(call: Call, header: ArtifactHeader) -> Differences:
    request = call.request
    if header.HasField("host_file") and not request.accept_host_file:
        yield "asked for the artifact's bytes, got a file's name"
    if header.inline_artifact and len(header.inline_artifact) > request.inline_limit_bytes:
        yield (
            f"asked for at most {request.inline_limit_bytes} bytes in the header, got"
            f" {len(header.inline_artifact)}"
        )
    if header.content_encoding and header.content_encoding not in request.accept_encodings:
        yield f"got bytes in an encoding that was not asked for: {quoted(header.content_encoding)}"
    name, value = FAST.get(header.engine.name, ("", ""))
    is_fast = bool(name) and header.changed_settings.get(name) == value
    if header.is_fast != is_fast:
        yield f"the header says is_fast={header.is_fast}, and its settings say the opposite"
    if is_fast and not (request.accept_fast or request.settings.get(name) == value):
        yield "asked for optimised code, got a fast compiler's"


_COMPARISONS: tuple[Comparison, ...] = (
    _module,
    _engine,
    _target,
    _cpu,
    _settings,
    _kind,
    _delivery,
)

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
}
