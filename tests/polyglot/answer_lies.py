"""Answers that no honest daemon sends: of the wrong length, with other bytes, or out of order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wasmkiln.v1.module_service_pb2 import CompileResponse
from wasmkiln.v1.types_pb2 import ArtifactHeader

from tests.polyglot.header_lies import true_answer
from tests.polyglot.kiln import Kiln

_MISMATCH = "ARTIFACT_MISMATCH"


def answer_lies(kiln: Kiln) -> tuple[Path, Mapping[tuple[str, str], list[bytes]]]:
    """Return a module, and what a server sends of it, by the lie's name and the reason due."""
    module, header, parts = true_answer(kiln)
    code = b"".join(parts)
    large = ArtifactHeader()
    large.CopyFrom(header)
    large.size_bytes = 1 << 40
    start, end = _chunk(code[:100]), _chunk(code[100:])
    first = CompileResponse(header=header).SerializeToString()
    return module, {
        ("the truth", "compiled"): [first, start, end],
        ("truncated", _MISMATCH): [first, start],
        ("longer", _MISMATCH): [first, start, end, _chunk(b"!")],
        ("other bytes", _MISMATCH): [first, start, _chunk(code[100:-1] + bytes([code[-1] ^ 1]))],
        ("too large", "ARTIFACT_TOO_LARGE"): [
            CompileResponse(header=large).SerializeToString(),
            start,
            end,
        ],
        ("two headers", _MISMATCH): [first, first, start, end],
        ("bytes before the header", _MISMATCH): [start, first, end],
        ("no header", _MISMATCH): [start, end],
        ("nothing", _MISMATCH): [],
    }


def _chunk(content: bytes) -> bytes:
    return CompileResponse(chunk=content).SerializeToString()
