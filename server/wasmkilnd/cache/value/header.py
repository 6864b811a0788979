"""Write and read the JSON header of a stored value.

Other clients may write to the server, so reading is strict: every field is required, no other
is allowed, and each has exactly one type.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wasmkilnd.cache.value.pieces import Body, Piece
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.model import (
    SHA256_HEX,
    Artifact,
    CompileSpec,
    EngineIdentity,
    ExternType,
    Kind,
    Module,
)

# Longer than any compile; NaN does not pass either.
_MAX_S = 1e9


def write_artifact_header(artifact: Artifact, body: Body, with_types: bool = True) -> bytes:
    """Serialize all of ``artifact`` except its frames, and its types unless ``with_types``."""
    spec = artifact.spec
    return _dump(
        {
            "attestation": base64.b64encode(artifact.attestation).decode(),
            "body": _body(body),
            "changed_settings": dict(spec.changed_settings),
            "compile_time_s": float(artifact.compile_time_s),
            "cpu": spec.cpu,
            "engine": {
                "compiler": spec.engine.compiler,
                "core_version": spec.engine.core_version,
                "name": spec.engine.name,
                "version": spec.engine.version,
            },
            "exports": _rows(artifact.exports) if with_types else [],
            "imports": _rows(artifact.imports) if with_types else [],
            "key": {"fingerprint": spec.fingerprint, "module": artifact.module_sha256},
            "kind": artifact.kind.value,
            "settings": dict(spec.settings),
            "sha256": artifact.sha256,
            "target": spec.target,
            "types_truncated": artifact.types_truncated or not with_types,
            "what": "artifact",
        }
    )


def write_module_header(module: Module, body: Body) -> bytes:
    """Serialize all of ``module`` except its bytes."""
    return _dump(
        {
            "body": _body(body),
            "kind": module.kind.value,
            "sha256": module.sha256,
            "what": "module",
        }
    )


def read_header(header: bytes) -> tuple[Artifact | Module, Body]:
    """Return what a header describes: an artifact without frames, or a module without bytes.

    Raises ValueRejected, and nothing else.
    """
    fields = _Fields.parse(header)
    match fields.text("what"):
        case "artifact":
            return _artifact(fields)
        case "module":
            return _module(fields)
    raise _malformed("what")


def _artifact(fields: _Fields) -> tuple[Artifact, Body]:
    engine = fields.inner("engine")
    key = fields.inner("key")
    body = fields.body("body")
    artifact = Artifact(
        module_sha256=key.text("module"),
        kind=fields.kind("kind"),
        spec=CompileSpec(
            engine=EngineIdentity(
                name=engine.text("name"),
                version=engine.text("version"),
                core_version=engine.text("core_version"),
                compiler=engine.text("compiler"),
            ),
            target=fields.text("target"),
            cpu=fields.text("cpu"),
            settings=fields.texts("settings"),
            changed_settings=fields.texts("changed_settings"),
            fingerprint=key.text("fingerprint"),
        ),
        sha256=fields.digest("sha256"),
        size_bytes=body.size_bytes,
        frames=(),
        compile_time_s=fields.seconds("compile_time_s"),
        imports=fields.externs("imports"),
        exports=fields.externs("exports"),
        types_truncated=fields.flag("types_truncated"),
        attestation=fields.octets("attestation"),
    )
    for part in (engine, key, fields):
        part.finish()
    return artifact, body


def _module(fields: _Fields) -> tuple[Module, Body]:
    body = fields.body("body")
    read = Module(fields.digest("sha256"), fields.kind("kind"), b"")
    fields.finish()
    return read, body


def _body(body: Body) -> dict[str, object]:
    return {
        "codec": body.codec,
        "pieces": [[piece.size_bytes, piece.sha256] for piece in body.pieces],
        "size": body.size_bytes,
    }


def _rows(externs: Sequence[ExternType]) -> list[list[str]]:
    return [[extern.module, extern.name, extern.kind, extern.type] for extern in externs]


def _dump(fields: Mapping[str, object]) -> bytes:
    text = json.dumps(
        fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def _malformed(name: str) -> ValueRejected:
    # Without the value's own text, which may be anything: this goes to the log.
    return ValueRejected(Cause.FORMAT, f"the header's {name} is malformed")


def _is_text(value: object) -> bool:
    if type(value) is not str:
        return False
    try:
        value.encode()  # JSON can contain a lone surrogate, which no protobuf string can.
    except UnicodeEncodeError:
        return False
    return True


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


class _Fields:
    """A JSON object whose fields are taken one by one; ``finish`` rejects what is left."""

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self._name = name
        self._left = fields

    @classmethod
    def parse(cls, header: bytes) -> _Fields:
        try:
            fields = json.loads(header.decode())
        except (ValueError, RecursionError) as error:
            raise _malformed("JSON") from error
        if type(fields) is not dict:
            raise _malformed("JSON")
        return cls("", fields)

    def finish(self) -> None:
        if self._left:
            raise ValueRejected(Cause.FORMAT, "the header has a field too many")

    def _take(self, name: str, expected: type, valid: Callable[[Any], bool] | None = None) -> Any:
        value = self._left.pop(name, None)
        if type(value) is not expected or (valid is not None and not valid(value)):
            raise _malformed(f"{self._name}{name}")
        return value

    def inner(self, name: str) -> _Fields:
        return _Fields(f"{name}.", self._take(name, dict))

    def text(self, name: str) -> str:
        return str(self._take(name, str, _is_text))

    def digest(self, name: str) -> str:
        return str(self._take(name, str, lambda value: bool(SHA256_HEX.fullmatch(value))))

    def kind(self, name: str) -> Kind:
        value = self.text(name)
        try:
            return Kind(value)
        except ValueError as error:
            raise _malformed(name) from error

    def whole(self, name: str) -> int:
        return int(self._take(name, int, _is_size))

    def seconds(self, name: str) -> float:
        return float(self._take(name, float, lambda value: 0 <= value <= _MAX_S))

    def flag(self, name: str) -> bool:
        return bool(self._take(name, bool))

    def texts(self, name: str) -> dict[str, str]:
        value: dict[str, str] = self._take(name, dict)
        if not all(_is_text(part) for pair in value.items() for part in pair):
            raise _malformed(name)
        return value

    def externs(self, name: str) -> tuple[ExternType, ...]:
        rows: list[object] = self._take(name, list)
        externs = []
        for row in rows:
            if type(row) is not list or len(row) != 4 or not all(map(_is_text, row)):
                raise _malformed(name)
            externs.append(ExternType(*row))
        return tuple(externs)

    def body(self, name: str) -> Body:
        fields = self.inner(name)
        rows: list[object] = fields._take("pieces", list)
        pieces = []
        for row in rows:
            if type(row) is not list or len(row) != 2 or not _is_size(row[0]):
                raise _malformed("pieces")
            if type(row[1]) is not str or not SHA256_HEX.fullmatch(row[1]):
                raise _malformed("pieces")
            pieces.append(Piece(*row))
        body = Body(fields.text("codec"), fields.whole("size"), tuple(pieces))
        fields.finish()
        return body

    def octets(self, name: str) -> bytes:
        try:
            return base64.b64decode(self._take(name, str), validate=True)
        except (binascii.Error, ValueError) as error:
            raise _malformed(name) from error
