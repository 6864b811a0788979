"""The first look at a caller's bytes: cheap, pure, before any engine sees them.

Engines' compile calls accept WebAssembly *text* too, at a cost of seconds and
gigabytes for a few megabytes, so nothing without the preamble of a binary may
get that far.
"""

from __future__ import annotations

import hashlib

from wasmkilnd import errors
from wasmkilnd.model import SHA256_HEX, Kind, Module

_MAGIC = b"\0asm"
_CORE_VERSION_1 = b"\x01\0\0\0"  # version 1, layer 0
_COMPONENT_LAYER = b"\x01\0"  # bytes 6 and 7 of the preamble
_COMPONENT_VERSION = b"\x0d\0"  # bytes 4 and 5
_ELF_MAGIC = b"\x7fELF"
_WASMER_MAGICS = (b"\0wasmer-universal", b"wasmer")


def admit(wasm: bytes, limit_bytes: int, expected_sha256: str = "") -> Module:
    """Check size, preamble and digest of ``wasm``.

    ``expected_sha256`` is checked when it is not empty. Raises NOT_WASM,
    MODULE_TOO_LARGE, INVALID_REQUEST or DIGEST_MISMATCH.
    """
    kind = kind_of(wasm)
    if len(wasm) > limit_bytes:
        raise errors.module_too_large(len(wasm), limit_bytes)
    if expected_sha256:
        check_sha256(expected_sha256, "expected_sha256")
    actual = hashlib.sha256(wasm).hexdigest()
    if expected_sha256 and actual != expected_sha256:
        raise errors.digest_mismatch(expected_sha256, actual)
    return Module(actual, kind, wasm)


def kind_of(wasm: bytes) -> Kind:
    """Tell a core module from a component by the preamble. Raises NOT_WASM."""
    if not wasm:
        raise errors.not_wasm("the module is empty: send the bytes of a .wasm file")
    if wasm[:4] != _MAGIC:
        raise errors.not_wasm(_what_it_is_instead(wasm))
    if wasm[4:8] == _CORE_VERSION_1:
        return Kind.CORE_MODULE
    if wasm[6:8] == _COMPONENT_LAYER:
        if wasm[4:6] == _COMPONENT_VERSION:
            return Kind.COMPONENT
        raise errors.not_wasm(
            "the component has a version of the binary format other than 0x0d:"
            " build it with current tools"
        )
    if len(wasm) < 8:
        raise errors.not_wasm("the module ends inside its preamble: it was cut off")
    raise errors.not_wasm(
        f"the preamble says version 0x{wasm[4:8][::-1].hex()}: neither a core module of version 1"
        " nor a component"
    )


def check_sha256(digest: str, field: str) -> str:
    """Answer ``digest`` if it is 64 lowercase hexadecimal digits. Raises INVALID_REQUEST."""
    if not SHA256_HEX.fullmatch(digest):
        raise errors.invalid_request(
            f"{field} must be a SHA-256 as 64 lowercase hexadecimal digits", field
        )
    return digest


def _what_it_is_instead(head: bytes) -> str:
    if head.startswith(_ELF_MAGIC) or head.startswith(_WASMER_MAGICS):
        return "these bytes are already compiled code: send the module that it was compiled from"
    if head[:64].lstrip().startswith((b"(", b";;")):
        return "these bytes are WebAssembly text: convert them to a binary first, with wat2wasm"
    return "these bytes are no WebAssembly binary: they do not start with \\0asm"
