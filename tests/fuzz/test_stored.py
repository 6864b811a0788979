"""Whatever is stored in Redis, the daemon reads only values that the fleet wrote.

Others may write there. Values that no trusted key stamped must not be believed whatever they look
like; and what a trusted key did stamp, by a daemon of another version or in the hands of a thief,
must not break who reads it. ValueRejected is the only error (strikes are in ``test_fleet.py``).
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.cache.value import (
    CACHE_FORMAT,
    FRAME_BYTES,
    TRAILER_BYTES,
    ZSTD,
    Opened,
    ValueRejected,
    head_bytes,
    open_head,
    stamped_by,
)
from wasmkilnd.model import Artifact
from wasmkilnd.rpc.messages import header_of

from tests.contract.sealing import OURS, sealer
from tests.contract.values import artifact, module, shrinking
from tests.doubles.shelf import decoded, opened, stored
from tests.fuzz.bytes_from_outside import changed, corpus, json_values, kept

SEALER = sealer(OURS)
PACKED = frozenset({ZSTD})
GENUINE = (SEALER.seal(artifact(1, 300)), SEALER.seal(shrinking(3, 3000)), module(2))
VALUES = [value for what in GENUINE for value in stored(what, SEALER).values()]
HEADERS = [json.loads(value[-head_bytes(value) : -TRAILER_BYTES]) for value in VALUES]


def as_bytes(value: Any) -> bytes:
    """Write JSON, with lone surrogates and NaN too."""
    return json.dumps(value).encode()


def check_rejected(rejected: ValueRejected) -> None:
    assert len(str(rejected)) < 300
    assert "\n" not in str(rejected)


def check_opened(found: Opened) -> None:
    """A value whose head was accepted can be served: it fits into the messages."""
    if isinstance(found.what, Artifact):
        assert header_of(found.what).SerializeToString()
        SEALER.verify(found.what, found.what.key)
    assert len(found.frames) == -(-found.size_bytes // FRAME_BYTES)
    assert sum(each.size_bytes for each in found.frames) == found.size_bytes
    assert all(0 < each.size_bytes <= FRAME_BYTES for each in found.frames)
    assert all(0 < each.stored_bytes < 1.1 * FRAME_BYTES for each in found.frames)


@kept(*VALUES, *corpus("values"))
@given(changed([*VALUES, *corpus("values")]) | st.binary(max_size=400))
def test_no_value_is_believed_but_the_fleets_own(value: bytes) -> None:
    assert isinstance(stamped_by(value), str)
    try:
        head = open_head(value, SEALER)
        check_opened(head)
        key = head.what.key if isinstance(head.what, Artifact) else head.what.sha256
        opened(value, key, SEALER)
    except ValueRejected as rejected:
        check_rejected(rejected)
        assert value not in VALUES
        return
    assert value in VALUES
    opened(value, key, SEALER, PACKED)


@st.composite
def altered(draw: st.DrawFn, genuine: list[dict[str, Any]]) -> bytes:
    """A header in which something, at any depth, was changed, removed or doubled."""
    header = json.loads(json.dumps(draw(st.sampled_from(genuine))))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = header
        while True:
            names = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not names:
                break
            name = draw(st.sampled_from(names))
            if isinstance(place[name], dict | list) and draw(st.booleans()):
                place = place[name]
                continue
            if draw(st.integers(0, 3)):
                place[name] = draw(json_values)
            else:
                del place[name]
            break
    return as_bytes(header)


@kept(*corpus("headers"))
@given(altered(HEADERS) | json_values.map(as_bytes) | st.binary(max_size=100))
def test_a_header_that_a_trusted_key_stamped_can_be_served_or_is_refused(header: bytes) -> None:
    start = struct.pack(">4sBI", b"WKLN", CACHE_FORMAT, len(header))
    digest = hashlib.sha256(header + start).digest()
    stamp = SEALER.stamp(b"wasmkiln value 3\0" + digest)
    try:
        found = open_head(header + start + digest + stamp, SEALER)
    except ValueRejected as rejected:
        check_rejected(rejected)
        return
    check_opened(found)
    for index, each in enumerate(found.frames[:5]):
        for damage in (b"", bytes(each.stored_bytes), b"x"):
            with pytest.raises(ValueRejected):
                found.unpack(index, damage)


def test_an_artifact_without_its_frames_is_refused() -> None:
    assert decoded(GENUINE[1]).size_bytes == GENUINE[1].size_bytes
    with pytest.raises(ValueRejected):
        decoded(replace(GENUINE[1], frames=(), encoding=ZSTD))
