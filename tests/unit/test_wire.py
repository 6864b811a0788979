"""Frames are what protobuf itself would have written."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln.v1 import module_service_pb2
from wasmkilnd import wire

from tests.contract.values import payload_of
from tests.frames import to_frames

CHUNK = wire.CHUNK_BYTES
SIZES = [0, 1, 127, 128, 16383, 16384, CHUNK, CHUNK + 1, 3 * CHUNK]


@pytest.mark.parametrize("size", SIZES)
def test_frames_are_serialized_compile_responses(size: int) -> None:
    payload = hashlib.shake_128(b"payload").digest(size)
    frames = to_frames(payload)
    chunks = [module_service_pb2.CompileResponse.FromString(frame).chunk for frame in frames]
    assert b"".join(chunks) == payload_of(frames) == payload
    assert all(0 < len(chunk) <= 1024 * 1024 for chunk in chunks)
    assert list(frames) == [
        module_service_pb2.CompileResponse(chunk=chunk).SerializeToString() for chunk in chunks
    ]


@given(st.integers(min_value=0, max_value=2**40))
def test_varint_is_protobufs(number: int) -> None:
    message = module_service_pb2.LoadResponse(size_bytes=number)
    serialized = message.SerializeToString()
    assert serialized[1:] == (wire.varint(number) if number else b"")


@pytest.mark.parametrize("limit", [1, 1000, wire.CHUNK_BYTES - 1, wire.CHUNK_BYTES])
def test_a_frame_cut_smaller_is_the_same_bytes(limit: int) -> None:
    payload = hashlib.shake_128(b"payload").digest(3000)
    (whole,) = to_frames(payload)
    pieces = list(wire.cut(whole, limit))
    assert payload_of(pieces) == payload
    assert all(len(view) <= limit for view in wire.payload_views(pieces))
    assert [
        module_service_pb2.CompileResponse.FromString(p).WhichOneof("part") for p in pieces
    ] == ["chunk"] * len(pieces)
