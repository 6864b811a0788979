"""What time takes back."""

from __future__ import annotations

import pytest
from wasmkilnd.access.quotas.windows import SlidingSum, TokenBucket


def test_a_sum_forgets_what_is_older_than_its_window() -> None:
    window = SlidingSum(60.0)
    window.add(5.0, 0.0)
    window.add(7.0, 30.0)
    assert window.total(30.0) == 12.0
    assert window.total(61.0) == 7.0
    assert window.total(91.0) == 0.0


def test_a_sum_tells_when_it_falls_below_a_limit() -> None:
    window = SlidingSum(60.0)
    for at_s in (0.0, 10.0, 20.0):
        window.add(4.0, at_s)
    assert window.seconds_until_below(13.0, 20.0) == 0.0
    for limit in (12.0, 9.0, 8.0, 5.0, 4.0, 0.5):
        wait_s = window.seconds_until_below(limit, 20.0)
        assert window.total(20.0 + wait_s) < limit
        assert window.total(20.0 + wait_s - 0.5) >= limit


def test_a_sum_holds_a_bounded_number_of_amounts() -> None:
    window = SlidingSum(60.0)
    for index in range(10_000):
        window.add(1.0, index / 10)
    assert len(window._added) <= 61
    assert window.total(999.9) == pytest.approx(600, abs=11)


def test_tokens_come_back_evenly() -> None:
    bucket = TokenBucket()
    for _ in range(3):
        assert bucket.seconds_until_one(3, 100.0) == 0.0
        bucket.take(3, 100.0)
    assert bucket.seconds_until_one(3, 100.0) == 20.0
    assert bucket.seconds_until_one(3, 120.0) == 0.0
    bucket.take(3, 120.0)
    assert bucket.seconds_until_one(3, 120.0) == 20.0
    assert bucket.spent(3, 1000.0) == 0.0


def test_less_than_one_token_a_minute_is_one_in_some_minutes() -> None:
    bucket = TokenBucket()
    bucket.take(0.5, 0.0)
    assert bucket.seconds_until_one(0.5, 0.0) == 120.0
    assert bucket.seconds_until_one(0.5, 120.0) == 0.0


def test_a_token_that_was_not_used_is_given_back() -> None:
    bucket = TokenBucket()
    bucket.take(1, 0.0)
    bucket.give_back()
    assert bucket.seconds_until_one(1, 0.0) == 0.0
    bucket.give_back()
    bucket.take(1, 0.0)
    assert bucket.seconds_until_one(1, 0.0) == 60.0
