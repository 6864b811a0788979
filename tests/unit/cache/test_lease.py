"""Leases say who holds them, and a copy of one does not stay alive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.cache.lease import Lease, Pulse, State, read_lease

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


def test_only_the_fleet_s_own_are_read_and_only_under_their_name() -> None:
    assert read_lease(VALUE, NAME + b"c", SEALER.check_stamp) is None
    assert read_lease(LEASE.written(NAME, sealer(THEIRS).stamp), NAME, SEALER.check_stamp) is None


@given(st.integers(0, len(VALUE) - 1), st.integers(1, 255))
def test_every_byte_counts(position: int, flip: int) -> None:
    changed = bytearray(VALUE)
    changed[position] ^= flip
    assert read_lease(bytes(changed), NAME, SEALER.check_stamp) is None


def test_a_holder_that_renews_lives_as_long_as_it_likes() -> None:
    pulse, lease, now_s = Pulse(), LEASE, 100.0
    for _ in range(50):
        assert pulse.lives(lease, now_s)
        assert pulse.lives(lease, now_s + 0.9)
        lease, now_s = lease.next(), now_s + 0.9


def test_one_that_only_stays_does_not() -> None:
    pulse = Pulse()
    assert pulse.lives(LEASE, 100.0)
    assert pulse.lives(LEASE, 101.0)
    assert not pulse.lives(LEASE, 101.1)


def test_neither_does_one_that_goes_back() -> None:
    pulse = Pulse()
    assert pulse.lives(LEASE.next(), 100.0)
    assert not pulse.lives(LEASE, 100.1)


def test_another_holder_is_given_the_same_time() -> None:
    pulse = Pulse()
    assert pulse.lives(LEASE.next(), 100.0)
    other = Lease.new(1000)
    assert pulse.lives(other, 102.0)
    assert pulse.lives(other, 102.9)
