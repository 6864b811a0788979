"""Live holders are told from leases that are left over, go back or were written back."""

from __future__ import annotations

import secrets

import pytest
from wasmkilnd.cache.fleet.holders import CLOCKS_DIFFER_S, LeaseHolders, Sightings
from wasmkilnd.cache.fleet.lease import Lease

TODAY_S = 1_795_627_309.0
LEASE = Lease.new(1000, TODAY_S)


@pytest.fixture
def holders() -> LeaseHolders:
    return LeaseHolders(lambda: TODAY_S)


def test_a_holder_that_renews_lives_as_long_as_it_likes(holders: LeaseHolders) -> None:
    sightings, lease, now_s = Sightings(), LEASE, 100.0
    for _ in range(50):
        assert holders.is_alive(lease, sightings, now_s)
        assert holders.is_alive(lease, sightings, now_s + 0.9)
        lease, now_s = lease.next(), now_s + 0.9


def test_a_holder_that_does_not_renew_is_not_alive(holders: LeaseHolders) -> None:
    sightings = Sightings()
    assert holders.is_alive(LEASE, sightings, 100.0)
    assert holders.is_alive(LEASE, sightings, 101.0)
    assert not holders.is_alive(LEASE, sightings, 101.1)
    assert not holders.is_alive(LEASE.next(), sightings, 101.2)


def test_a_holder_whose_beat_goes_back_is_not_alive(holders: LeaseHolders) -> None:
    sightings = Sightings()
    assert holders.is_alive(LEASE.next(), sightings, 100.0)
    assert not holders.is_alive(LEASE, sightings, 100.1)


def test_the_next_holder_gets_the_same_time(holders: LeaseHolders) -> None:
    sightings = Sightings()
    assert holders.is_alive(LEASE.next(), sightings, 100.0)
    other = Lease.new(1000, TODAY_S)
    assert holders.is_alive(other, sightings, 102.0)
    assert holders.is_alive(other, sightings, 102.9)
    assert sightings.holders == 2


def test_a_holder_that_was_replaced_does_not_come_back(holders: LeaseHolders) -> None:
    sightings, other = Sightings(), Lease.new(1000, TODAY_S)
    assert holders.is_alive(LEASE, sightings, 100.0)
    assert holders.is_alive(other, sightings, 100.5)
    assert not holders.is_alive(LEASE.next(), sightings, 100.6)


def test_sightings_of_one_call_count_for_the_next(holders: LeaseHolders) -> None:
    assert holders.is_alive(LEASE, Sightings(), 100.0)
    assert holders.is_alive(LEASE, Sightings(), 101.0)
    assert not holders.is_alive(LEASE, Sightings(), 101.1)
    holders.mark_ended("ab" * 16)
    assert not holders.is_alive(Lease("ab" * 16, 1000), Sightings(), 100.0)


@pytest.mark.parametrize(
    ("age_s", "is_believed"),
    [(0, True), (30, True), (-30, True), (95, False), (-CLOCKS_DIFFER_S - 1, False)],
)
def test_a_lease_that_is_too_old_is_a_copy(
    holders: LeaseHolders, age_s: float, is_believed: bool
) -> None:
    lease = Lease.new(1000, TODAY_S - age_s)
    assert holders.is_alive(lease, Sightings(lambda: 30.0), 100.0) is is_believed


def test_an_undated_lease_is_believed_for_two_leases_only(holders: LeaseHolders) -> None:
    sightings, lease, now_s, waited_s = Sightings(), Lease(secrets.token_hex(16), 1000), 100.0, 0.0
    while holders.is_alive(lease, sightings, now_s + waited_s):
        lease, waited_s = lease.next(), waited_s + 0.5
    assert 1 <= waited_s <= 3


def test_memory_is_bounded(holders: LeaseHolders) -> None:
    for number in range(20_000):
        holders.mark_ended(f"{number:032x}")
    assert len(holders._seen) == 10_000
