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


@pytest.mark.parametrize("order", [(WHOLE, HOLE, GAP), (HOLE, GAP, WHOLE), (GAP, WHOLE, HOLE)])
def test_the_weakest_worker_speaks_for_its_engine(order: tuple[Isolation, ...]) -> None:
    guard = IsolationGuard("best-effort")
    assert not guard.of("wasmtime-1").holds
    for isolation in order:
        guard.admit("wasmtime-1", isolation)
    assert guard.of("wasmtime-1") == HOLE
    assert guard.summary == "not confined: they could fork"


def test_a_worker_that_tried_nothing_is_not_confined() -> None:
    assert not Isolation().holds
    with pytest.raises(NotConfined, match="could do anything"):
        IsolationGuard("required").admit("wasmtime-1", Isolation())


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


def test_strict_takes_an_old_landlock_and_refuses_a_hole() -> None:
    guard = IsolationGuard("strict")
    guard.admit("wasmtime-1", confined())
    guard.admit("wasmtime-1", confined(landlock=LayerState.PARTIAL))
    assert not guard.refused
    with pytest.raises(NotConfined, match="could fork"):
        guard.admit("wasmtime-1", Isolation(confined().layers, {"fork": False}))
