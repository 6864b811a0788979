"""Payloads as artifacts hold them."""

from __future__ import annotations

import hashlib

from wasmkilnd import wire
from wasmkilnd.wire import Packed


def pack(payload: bytes | bytearray) -> Packed:
    """Hash ``payload`` and cut it into frames."""
    return Packed(hashlib.sha256(payload).hexdigest(), len(payload), to_frames(payload))


def to_frames(payload: bytes | bytearray) -> tuple[bytes, ...]:
    """Cut ``payload`` into serialized chunk messages; none for an empty one."""
    return tuple(map(wire.frame, wire.pieces(bytes(payload))))
