"""Who is let in, and what is said about it."""

from __future__ import annotations

import pytest
from wasmkilnd.engines.isolation import IsolationGuard
from wasmkilnd.model import Isolation, IsolationLayer, LayerState

SECCOMP = IsolationLayer("seccomp", LayerState.ENFORCED, "")
LANDLOCK = IsolationLayer("landlock", LayerState.ENFORCED, "ABI 7")
NO_LANDLOCK = IsolationLayer("landlock", LayerState.MISSING, "the kernel has none")
NO_SECCOMP = IsolationLayer("seccomp", LayerState.MISSING, "the kernel has none")

WHOLE = Isolation((LANDLOCK, SECCOMP), {"connect": True, "fork": True})
GAP = Isolation((NO_LANDLOCK, SECCOMP), {"connect": True, "fork": True})
HOLE = Isolation((LANDLOCK, NO_SECCOMP), {"connect": True, "fork": False})


@pytest.mark.parametrize("order", [(WHOLE, HOLE, GAP), (HOLE, GAP, WHOLE), (GAP, WHOLE, HOLE)])
def test_the_weakest_worker_speaks_for_its_engine(order: tuple[Isolation, ...]) -> None:
    guard = IsolationGuard("best-effort")
    assert not guard.of("wasmtime-1").holds
    for isolation in order:
        guard.admit("wasmtime-1", isolation)
    assert guard.of("wasmtime-1") == HOLE
    assert guard.summary == "not confined: they could fork"
