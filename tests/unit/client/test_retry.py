"""When another try is made, and after how long."""

from __future__ import annotations

import time

import grpc
import pytest
from wasmkiln import errors
from wasmkiln._flow import Deadline, RetryPolicy


def policy(unit: float = 1.0, attempts: int = 3) -> RetryPolicy:
    return RetryPolicy(attempts, first_pause_s=0.1, longest_pause_s=1, random_unit=lambda: unit)


def test_no_connection_backs_off_exponentially_up_to_a_limit() -> None:
    lost = errors.ConnectionFailed("lost")
    pauses = [policy(attempts=9).pause_s(lost, attempt, 60) for attempt in range(1, 7)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_jitter_takes_up_to_half() -> None:
    lost = errors.ConnectionFailed("lost")
    assert policy(unit=0).pause_s(lost, 1, 60) == pytest.approx(0.05)


@pytest.mark.parametrize("unit", [0.0, 0.5, 1.0])
def test_a_told_delay_is_never_shortened(unit: float) -> None:
    full = errors.CompileQueueFull("full", retry_after_s=3)
    pause_s = policy(unit).pause_s(full, 1, 60)
    assert pause_s is not None
    assert 3 <= pause_s <= 3.1


@pytest.mark.parametrize("retry_after_s", [0.0, -1.0])
def test_a_delay_of_nothing_still_backs_off(retry_after_s: float) -> None:
    full = errors.CompileQueueFull("full", retry_after_s=retry_after_s)
    pauses = [policy(0, attempts=9).pause_s(full, attempt, 60) for attempt in range(1, 7)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5])


def test_the_number_of_attempts_may_be_large() -> None:
    lost = errors.ConnectionFailed("lost")
    assert policy(attempts=10**6).pause_s(lost, 5_000, 60) == pytest.approx(1.0)


def test_the_last_attempt_is_the_last() -> None:
    lost = errors.ConnectionFailed("lost")
    assert policy(attempts=3).pause_s(lost, 2, 60) is not None
    assert policy(attempts=3).pause_s(lost, 3, 60) is None
    assert policy(attempts=1).pause_s(lost, 1, 60) is None


def test_never_past_the_deadline() -> None:
    full = errors.CompileQueueFull("full", retry_after_s=3)
    assert policy().pause_s(full, 1, 2.9) is None


@pytest.mark.parametrize(
    "error",
    [
        errors.ModuleInvalid("bad"),
        errors.CompileQueueFull("full, without saying for how long"),
        errors.ModuleQuarantined("quarantined"),
        errors.DeadlineExceeded("late"),
        errors.ArtifactMismatch("damaged"),
        errors.WasmkilnError("?", code=grpc.StatusCode.INTERNAL),
    ],
)
def test_what_does_not_say_so_is_not_tried_again(error: errors.WasmkilnError) -> None:
    assert policy().pause_s(error, 1, 60) is None


def test_a_deadline_runs_out() -> None:
    deadline = Deadline(0.02)
    assert 0 < deadline.remaining_s() <= 0.02
    time.sleep(0.03)
    assert deadline.remaining_s() <= 0
