"""Each layer by itself, and what a worker reports when some are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from wasmkilnd.model import Isolation, LayerState

from tests.confinement import workers
from tests.confinement.workers import EVERYTHING

pytestmark = pytest.mark.asyncio(loop_scope="module")

LAYERS = ["namespaces", "root", "landlock", "privileges", "limits", "seccomp"]
# What the probe finds refused where there is no other layer.
ALONE = {
    "namespaces": {"connect", "read", "write", "execute", "signal"},
    "landlock": {"connect", "read", "write", "execute"},
    "privileges": {"execute", "trace"},
    "limits": {"raise_limits"},
    "seccomp": {
        *("connect", "read", "write", "execute", "signal", "trace", "raise_limits"),
        *("fork", "new_privileges", "share_memory", "io_uring"),
    },
}

# Which of the probe's attempts succeed without a layer, all others being there.
HOLES_WITHOUT = {
    "namespaces": set(),
    "landlock": set(),
    "privileges": set(),
    "seccomp": {"fork", "share_memory", "io_uring"},
}


@pytest.mark.parametrize("layer", ALONE)
async def test_one_layer_alone_refuses(layer: str, tmp_path: Path) -> None:
    found = await isolation(tmp_path, [name for name in EVERYTHING if name != layer])
    states = {each.name: each.state for each in found.layers}
    # Without a user of their own jobs keep some of their limits.
    if states[layer] is not LayerState.ENFORCED and layer != "limits":
        pytest.skip(f"this machine has no {layer}, or not all of it")
    assert not ALONE[layer] & set(found.holes)
    assert {states[name] for name in LAYERS if name not in (layer, "root")} == {LayerState.MISSING}


@pytest.mark.parametrize("missing", HOLES_WITHOUT)
async def test_a_missing_layer_is_reported_and_the_others_hold(
    missing: str, tmp_path: Path
) -> None:
    whole = await isolation(tmp_path / "whole", [])
    part = await isolation(tmp_path / "part", [missing])
    said = {layer.name: layer for layer in part.layers}
    assert list(said) == LAYERS
    assert said[missing].state is LayerState.MISSING
    assert said[missing].detail
    if not whole.gaps:
        assert set(part.holes) <= HOLES_WITHOUT[missing]
        assert part.holds == (missing != "seccomp")


async def test_all_layers_together_refuse_every_attempt(tmp_path: Path) -> None:
    found = await isolation(tmp_path, [])
    assert [layer.name for layer in found.layers] == LAYERS
    assert found.holds
    assert set(found.attempts.values()) == {True}


async def test_the_workers_own_attempts_succeed_where_nothing_confines_it(tmp_path: Path) -> None:
    """The control: a probe that finds everything refused would be worth nothing."""
    found = await isolation(tmp_path, EVERYTHING)
    assert not found.holds
    # Nor has a bare worker a descriptor too many by itself: test_leftovers gives it some.
    not_everywhere = {"io_uring", "trace", "new_privileges", "descriptors"}
    assert set(found.attempts) - set(found.holes) <= not_everywhere


async def test_only_seccomp_and_limits_are_enough(tmp_path: Path) -> None:
    """This is so in a container that forbids namespaces, on a kernel without Landlock."""
    assert (await isolation(tmp_path, ["namespaces", "landlock", "privileges"])).holds


async def isolation(folder: Path, left_out: Sequence[str]) -> Isolation:
    """Return what a worker without some layers finds."""
    async with workers.running(workers.environment(folder, left_out)) as worker:
        return worker.isolation
