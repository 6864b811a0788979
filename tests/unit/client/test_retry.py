"""When another try is made, and after how long."""

from __future__ import annotations

import time

import grpc
import pytest
from wasmkiln import errors
from wasmkiln.rpc import Deadline, pause_s

LOST = errors.ConnectionFailed("lost")


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> float:
    """What chance says, from 0 to 1."""
    told: float = getattr(request, "param", 1.0)
    monkeypatch.setattr("wasmkiln.rpc.random.random", lambda: told)
    return told


def test_no_connection_backs_off_exponentially_up_to_a_limit(unit: float) -> None:
    pauses = [pause_s(LOST, attempt) for attempt in range(1, 9)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert pause_s(LOST, 5_000) == pytest.approx(5.0)


@pytest.mark.parametrize("unit", [0.0], indirect=True)
def test_jitter_takes_up_to_half(unit: float) -> None:
    assert pause_s(LOST, 1) == pytest.approx(0.05)


@pytest.mark.parametrize("unit", [0.0, 0.5, 1.0], indirect=True)
def test_a_told_delay_is_never_shortened(unit: float) -> None:
    pause = pause_s(errors.CompileQueueFull("full", retry_after_s=3), 1)
    assert pause is not None
    assert 3 <= pause <= 3.1


@pytest.mark.parametrize("unit", [0.0], indirect=True)
@pytest.mark.parametrize("retry_after_s", [0.0, -1.0])
def test_a_delay_of_nothing_still_backs_off(unit: float, retry_after_s: float) -> None:
    full = errors.CompileQueueFull("full", retry_after_s=retry_after_s)
    pauses = [pause_s(full, attempt) for attempt in range(1, 5)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4])


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
    assert pause_s(error, 1) is None


def test_a_deadline_runs_out() -> None:
    deadline = Deadline(0.02)
    assert 0 < deadline.remaining_s() <= 0.02
    time.sleep(0.03)
    assert deadline.remaining_s() <= 0
