"""Whatever is stored in Redis, the daemon reads only what the fleet wrote.

Others may write there. Values, leases and strikes that no trusted key stamped must not be
believed whatever they look like; and what a trusted key did stamp, by a daemon of another version
or in the hands of a thief, must not break who reads it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd import errors
from wasmkilnd.cache.fleet.lease import Lease, State, read_lease
from wasmkilnd.cache.fleet.strike_record import read_record, write_record
from wasmkilnd.cache.value import format as value_format
from wasmkilnd.cache.value.format import HEADER_OFFSET, Opened, head_end, open_any
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.model import STAMP_BYTES, Artifact, Module, Strike
from wasmkilnd.rpc.wire import headers, messages
from wasmkilnd.rpc.wire.status import to_status

from tests.contract.sealing import OURS, sealer
from tests.contract.values import artifact, module
from tests.doubles.shelf import stored
from tests.fuzz.bytes_from_outside import changed, corpus, json_values

SEALER = sealer(OURS)
NAMES = KeyNames("wasm:")
ARTIFACT = SEALER.seal(artifact(1, 300))
VALUES = [list(stored(what, SEALER).values())[-1] for what in (ARTIFACT, module(2))]
HEADERS = [json.loads(value[HEADER_OFFSET : head_end(value)]) for value in VALUES]
LEASE_NAME = NAMES.lease(ARTIFACT.key)
LEASES = [Lease.new(1000).next(state).written(LEASE_NAME, SEALER.stamp) for state in State]
STRIKE = Strike(ARTIFACT.key, "wasmtime-1.0", "COMPILE_TIMEOUT", "it took too long", 3, 600.0)
STRUCK_MS = 1_795_627_309_123
RECORD = write_record(STRIKE, 1000, STRUCK_MS, SEALER.stamp)
TTLS = st.integers(-2, 2**40)


def as_bytes(value: Any) -> bytes:
    """Write JSON, with lone surrogates and NaN too."""
    return json.dumps(value).encode()


def check_value(value: bytes) -> None:
    try:
        opened = open_any(value, SEALER.check_stamp)
    except ValueRejected as rejected:
        assert len(str(rejected)) < 300
        return
    check_opened(opened)
    # Only what follows the signed head may have changed, and pieces have digests of their own.
    assert any(value.startswith(one[: head_end(one)]) for one in VALUES)


def check_opened(opened: Opened[Artifact | Module]) -> None:
    """A value that was accepted can be served: it fits into the messages."""
    if isinstance(opened.what, Artifact):
        assert headers.header_of(opened.what).SerializeToString()
        SEALER.verify(opened.what, opened.what.key)
    assert opened.body.stored_bytes <= 2 * opened.body.size_bytes + 512


@given(changed([*VALUES, *corpus("values")]) | st.binary(max_size=400))
def test_no_value_is_believed_but_the_fleets_own(value: bytes) -> None:
    check_value(value)


@pytest.mark.parametrize("value", corpus("values"))
def test_kept_values(value: bytes) -> None:
    check_value(value)


def check_header(header: bytes) -> None:
    try:
        opened = open_any(value_format._head(header, SEALER.stamp), SEALER.check_stamp)
    except ValueRejected as rejected:
        assert len(str(rejected)) < 300
        return
    check_opened(opened)


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


@given(altered(HEADERS) | json_values.map(as_bytes) | st.binary(max_size=100))
def test_a_header_that_a_trusted_key_stamped_can_be_served_or_is_refused(header: bytes) -> None:
    check_header(header)


@pytest.mark.parametrize("header", corpus("headers"))
def test_kept_headers(header: bytes) -> None:
    check_header(header)


@given(changed([*LEASES, *corpus("leases")]) | st.binary(max_size=400))
def test_no_lease_is_believed_but_the_fleets_own(value: bytes) -> None:
    assert (read_lease(value, LEASE_NAME, SEALER.check_stamp) is not None) == (value in LEASES)


@pytest.mark.parametrize("value", corpus("leases"))
def test_kept_leases(value: bytes) -> None:
    assert read_lease(value, LEASE_NAME, SEALER.check_stamp) is None


@given(changed([RECORD]) | st.binary(max_size=400), TTLS)
def test_no_strike_is_believed_but_the_fleets_own(record: bytes, ttl_s: int) -> None:
    read = read_record(ARTIFACT.key, record, SEALER.check_stamp)
    assert (read is not None) == (record == RECORD)
    if read:
        assert read.struck_ms == STRUCK_MS
        check_strike(read.strike_at(ttl_s, STRUCK_MS))


def check_strike(strike: Strike | None) -> None:
    """A strike can be reported to callers and operators, and ends some day."""
    assert strike
    assert strike.key == ARTIFACT.key
    assert 0 <= strike.left_s < 1e12
    refusal = errors.module_quarantined(
        strike.engine_id, strike.reason, strike.message, strike.left_s
    )
    assert len(to_status(refusal).SerializeToString()) < 8000
    assert messages.quarantined_module(strike).SerializeToString()


def check_record(text: bytes, ttl_s: int) -> None:
    record = SEALER.stamp(b"wasmkiln strike\0" + text) + text
    read = read_record(ARTIFACT.key, record, SEALER.check_stamp)
    if read:
        check_strike(read.strike_at(ttl_s, read.struck_ms))


@given(altered([json.loads(RECORD[STAMP_BYTES:])]) | json_values.map(as_bytes), TTLS)
def test_a_strike_that_a_trusted_key_stamped_can_be_told_or_is_nothing(
    text: bytes, ttl_s: int
) -> None:
    check_record(text, ttl_s)


@pytest.mark.parametrize("text", corpus("strikes"))
def test_kept_strikes(text: bytes) -> None:
    check_record(text, 500)
