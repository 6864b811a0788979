"""No change of a stored value, whatever it is, comes out as anything but a rejection."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmkilnd.cache.codec import (
    decode_artifact,
    decode_module,
    encode_artifact,
    encode_module,
    engine_of,
    kind_of,
)
from wasmkilnd.cache.rejected import ValueRejected
from wasmkilnd.model import CacheKey, Kind

from tests.contract.values import artifact, module, same

ONE, OTHER = artifact(1, 300), artifact(2, 300)
STORED = b"".join(encode_artifact(ONE))
FOREIGN = b"".join(encode_artifact(OTHER))
MODULE = module(1)
STORED_MODULE = b"".join(encode_module(MODULE))


def test_round_trips() -> None:
    assert same(decode_artifact(STORED, ONE.key), ONE)
    assert decode_module(STORED_MODULE, MODULE.sha256) == MODULE
    assert engine_of(STORED) == "wasmtime-1.0"
    assert kind_of(STORED) is Kind.CORE_MODULE


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_byte_counts(flip: int) -> None:
    for position in range(len(STORED)):
        damaged = bytearray(STORED)
        damaged[position] ^= flip
        with pytest.raises(ValueRejected):
            decode_artifact(bytes(damaged), ONE.key)


def test_every_length_but_its_own_is_rejected() -> None:
    for length in range(len(STORED)):
        with pytest.raises(ValueRejected):
            decode_artifact(STORED[:length], ONE.key)


@given(st.binary(min_size=1, max_size=50))
def test_what_is_appended_is_rejected(tail: bytes) -> None:
    with pytest.raises(ValueRejected):
        decode_artifact(STORED + tail, ONE.key)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(STORED_MODULE) - 1), st.integers(1, 255)), min_size=1))
def test_no_damaged_module_comes_out(damages: list[tuple[int, int]]) -> None:
    damaged = bytearray(STORED_MODULE)
    for position, flip in damages:
        damaged[position] ^= flip
    if bytes(damaged) == STORED_MODULE:
        return
    with pytest.raises(ValueRejected):
        decode_module(bytes(damaged), MODULE.sha256)


def test_values_swapped_between_keys_are_rejected() -> None:
    for key in (
        OTHER.key,
        CacheKey(ONE.module_sha256, OTHER.key.fingerprint),
        CacheKey(OTHER.module_sha256, ONE.key.fingerprint),
    ):
        with pytest.raises(ValueRejected):
            decode_artifact(STORED, key)
    with pytest.raises(ValueRejected):
        decode_module(STORED_MODULE, "0" * 64)
    with pytest.raises(ValueRejected):
        decode_module(STORED, ONE.module_sha256)
    with pytest.raises(ValueRejected):
        decode_artifact(STORED_MODULE, ONE.key)


@given(st.integers(0, len(STORED)), st.integers(0, len(FOREIGN)))
def test_no_mixture_of_two_values_comes_out(head: int, tail: int) -> None:
    mixed = STORED[:head] + FOREIGN[tail:]
    for stored, key in ((STORED, ONE.key), (FOREIGN, OTHER.key)):
        if mixed != stored:
            with pytest.raises(ValueRejected):
                decode_artifact(mixed, key)


@given(st.binary(max_size=400))
def test_any_bytes_are_rejected_in_good_order(value: bytes) -> None:
    for decode in (
        lambda: decode_artifact(value, ONE.key),
        lambda: decode_module(value, MODULE.sha256),
        lambda: decode_artifact(b"WKLN\x01\0" + value, ONE.key),
    ):
        with pytest.raises(ValueRejected):
            decode()
