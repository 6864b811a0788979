"""Who is let in, and what is said about it."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs
from wasmkilnd.engines.process import IsolationGuard, NotConfined
from wasmkilnd.model import Isolation, IsolationLayer, LayerState

SECCOMP = IsolationLayer("seccomp", LayerState.ENFORCED, "")
LANDLOCK = IsolationLayer("landlock", LayerState.ENFORCED, "ABI 7")
NO_LANDLOCK = IsolationLayer("landlock", LayerState.MISSING, "the kernel has none")
NO_SECCOMP = IsolationLayer("seccomp", LayerState.MISSING, "the kernel has none")

WHOLE = Isolation((LANDLOCK, SECCOMP), {"connect": True, "fork": True})
GAP = Isolation((NO_LANDLOCK, SECCOMP), {"connect": True, "fork": True})
HOLE = Isolation((LANDLOCK, NO_SECCOMP), {"connect": True, "fork": False})


def test_what_holds_is_let_in_and_needs_no_words() -> None:
    guard = IsolationGuard("required")
    with capture_logs() as lines:
        guard.admit("wasmtime-1", WHOLE)
    assert lines == []
    assert guard.of("wasmtime-1") == WHOLE
    assert guard.summary == "confined by landlock, seccomp"


def test_a_missing_layer_is_told_once_for_all_engines() -> None:
    guard = IsolationGuard("required")
    with capture_logs() as lines:
        for engine in ("wasmtime-1", "wasmer-1"):
            guard.admit(engine, GAP)
    assert [(line["log_level"], line["layer"], line["cause"]) for line in lines] == [
        ("warning", "landlock", "the kernel has none")
    ]
    assert guard.summary == "confined by landlock (missing), seccomp"


def test_a_hole_is_not_let_in_where_isolation_is_required() -> None:
    guard = IsolationGuard("required")
    with pytest.raises(NotConfined) as refusal:
        guard.admit("wasmtime-1", HOLE)
    for words in ("could fork", "seccomp: the kernel has none", "WASMKILN_ISOLATION=best-effort"):
        assert words in str(refusal.value)
    assert "connect" not in str(refusal.value)


def test_a_hole_is_let_in_with_a_word_by_best_effort() -> None:
    guard = IsolationGuard("best-effort")
    with capture_logs() as lines:
        guard.admit("wasmtime-1", HOLE)
        guard.admit("wasmtime-1", HOLE)
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("warning", "a layer of isolation is not in force"),
        ("error", "jobs are not confined"),
    ]
    assert lines[1]["could"] == ["fork"]
    assert guard.summary == "not confined: they could fork"


@pytest.mark.parametrize("order", [(WHOLE, HOLE, GAP), (HOLE, GAP, WHOLE), (GAP, WHOLE, HOLE)])
def test_the_weakest_worker_speaks_for_its_engine(order: tuple[Isolation, ...]) -> None:
    guard = IsolationGuard("best-effort")
    for isolation in order:
        guard.admit("wasmtime-1", isolation)
    assert guard.of("wasmtime-1") == HOLE


def test_a_worker_that_tried_nothing_is_not_confined() -> None:
    assert not Isolation().holds
    with pytest.raises(NotConfined, match="could do anything"):
        IsolationGuard("required").admit("wasmtime-1", Isolation())


def test_an_engine_that_was_never_seen_is_not_confined() -> None:
    assert not IsolationGuard("required").of("wasmtime-1").holds


NAMES = ("root", "landlock", "seccomp")
ALL = {"connect": True, "fork": True}


def confined(**states: LayerState) -> Isolation:
    """Return what a worker found whose layers are enforced, but for some."""
    return Isolation(
        tuple(
            IsolationLayer(name, states.get(name, LayerState.ENFORCED), "the reason")
            for name in NAMES
        ),
        ALL,
    )


@pytest.mark.parametrize("name", NAMES)
def test_strict_asks_for_each_of_three_layers(name: str) -> None:
    without = confined(**{name: LayerState.MISSING})
    IsolationGuard("required").admit("wasmtime-1", without)
    guard = IsolationGuard("strict")
    with pytest.raises(NotConfined) as failure:
        guard.admit("wasmtime-1", without)
    assert f"{name} is missing: the reason" in str(failure.value)
    assert "WASMKILN_ISOLATION=required" in str(failure.value)
    assert guard.refused == {"wasmtime-1": str(failure.value)}


def test_strict_takes_an_old_landlock_and_refuses_a_hole() -> None:
    guard = IsolationGuard("strict")
    guard.admit("wasmtime-1", confined())
    guard.admit("wasmtime-1", confined(landlock=LayerState.PARTIAL))
    assert not guard.refused
    with pytest.raises(NotConfined, match="could fork"):
        guard.admit("wasmtime-1", Isolation(confined().layers, {"fork": False}))
