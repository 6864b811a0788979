"""Admission accepts binaries only, and tells callers what other bytes are."""

from __future__ import annotations

import pytest
from wasmkilnd.compile import admit, check_sha256
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import Kind

CORE = b"\0asm\x01\0\0\0"
COMPONENT = b"\0asm\x0d\0\x01\0"


def test_tells_core_modules_from_components() -> None:
    assert admit(CORE, 100).kind is Kind.CORE_MODULE
    assert admit(COMPONENT, 100).kind is Kind.COMPONENT


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a WebAssembly binary"),
        (b"(module)", "WebAssembly text"),
        (b"\n  ;; a comment\n(module)", "WebAssembly text"),
        (b"\x7fELF" + bytes(60), "not a WebAssembly binary"),
        (b"\0wasmer-universal" + bytes(60), "not a WebAssembly binary"),
        (b"wasmer-universal" + bytes(60), "not a WebAssembly binary"),
        (b"WASMER\0\0" + bytes(60), "not a WebAssembly binary"),
        (b"wasmer is a runtime", "not a WebAssembly binary"),
        (b"\0asm", "not a WebAssembly binary"),
        (b"\0asm\x02\0\0\0", "not a WebAssembly binary"),
        (b"\0asm\x0a\0\x01\0", "not a WebAssembly binary"),
        (b"MZ\x90\0", "not a WebAssembly binary"),
    ],
)
def test_other_bytes_are_refused_with_what_they_are(data: bytes, words: str) -> None:
    with pytest.raises(WasmkilnError) as refusal:
        admit(data, 100)
    assert refusal.value.reason is Reason.NOT_WASM
    assert words in refusal.value.message


def test_size_limit_is_inclusive() -> None:
    assert admit(CORE + bytes(92), 100).sha256
    with pytest.raises(WasmkilnError) as refusal:
        admit(CORE + bytes(93), 100)
    assert refusal.value.reason is Reason.MODULE_TOO_LARGE
    assert refusal.value.metadata == {"size_bytes": "101", "limit_bytes": "100"}


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "\n", "g" * 64])
def test_malformed_digests_are_refused(digest: str) -> None:
    with pytest.raises(WasmkilnError) as refusal:
        check_sha256(digest, "sha256")
    assert refusal.value.reason is Reason.INVALID_REQUEST
    assert refusal.value.field == "sha256"
