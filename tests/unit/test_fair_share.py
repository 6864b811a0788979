"""Callers share a limit, and no caller takes it all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.quota import FairShare


def fill(share: FairShare, caller: str) -> int:
    while share.room(caller) >= 1:
        share.add(caller, 1)
    return share.held.get(caller, 0)


def test_one_caller_gets_half_and_the_next_finds_room() -> None:
    share = FairShare(lambda: 1200)
    assert [fill(share, caller) for caller in "abcd"] == [600, 300, 150, 75]
    share.add("a", -600)
    assert fill(share, "b") > 300


def test_an_amount_fits_if_as_much_stays_free() -> None:
    share = FairShare(lambda: 100)
    assert share.fits("a", 50)
    assert not share.fits("a", 51)
    share.add("a", 40)
    assert share.fits("a", 10)
    assert not share.fits("a", 11)
    assert share.fits("b", 30)
    assert not share.fits("b", 31)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), max_size=50))
def test_it_counts_exactly_and_forgets_callers_that_hold_nothing(
    steps: list[tuple[str, int]],
) -> None:
    share = FairShare(lambda: 100)
    for caller, amount in steps:
        before = share.total, share.held.get(caller, 0)
        share.add(caller, amount)
        assert (share.total, share.held.get(caller, 0)) == (before[0] + amount, before[1] + amount)
    for caller in "abc":
        share.add(caller, -share.held.get(caller, 0))
    assert share.total == 0
    assert not share.held
