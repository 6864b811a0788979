"""The value of a lease: who may write it, and what it says."""

from __future__ import annotations

import re
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.cache.fleet.lease import Lease, State, read_lease

from tests.contract.sealing import THEIRS, sealer

SEALER = sealer()
NAME = b"wasm:lease:{a}:b"
LEASE = Lease.new(1000)
VALUE = LEASE.written(NAME, SEALER.stamp)


@pytest.mark.parametrize("lease", [LEASE, *(LEASE.next(state) for state in State)])
def test_what_is_written_is_read(lease: Lease) -> None:
    value = lease.written(NAME, SEALER.stamp)
    assert value.startswith(lease.token)
    assert read_lease(value, NAME, SEALER.check_stamp) == lease


def test_a_lease_is_read_only_with_a_valid_stamp_and_under_its_own_name() -> None:
    assert read_lease(VALUE, NAME + b"c", SEALER.check_stamp) is None
    assert read_lease(LEASE.written(NAME, sealer(THEIRS).stamp), NAME, SEALER.check_stamp) is None


@given(st.integers(0, len(VALUE) - 1), st.integers(1, 255))
def test_every_byte_counts(position: int, flip: int) -> None:
    changed = bytearray(VALUE)
    changed[position] ^= flip
    assert read_lease(bytes(changed), NAME, SEALER.check_stamp) is None


def test_a_lease_says_when_it_began_unless_v0_1_0_wrote_it() -> None:
    lease = Lease.new(1000, 1_795_627_309.123)
    assert lease.next().began_s == 1_795_627_309.123
    assert re.fullmatch("[0-9a-f]{32}", lease.holder)  # What v0.1.0 takes for a holder.
    assert Lease(secrets.token_hex(16), 1000).began_s is None
