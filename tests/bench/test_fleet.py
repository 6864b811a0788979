"""The simulated fleet lives through its phases, and an object store keeps what Redis loses."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench.fleet import markdown, simulate

SMALL = argparse.Namespace(
    daemons=4, modules=100, calls=300, callers=4, exponent=1.0, speed=1000.0, host_store=True
)


@pytest.mark.parametrize("objects", [False, True])
async def test_a_fleet_that_loses_redis_compiles_again_unless_it_has_an_object_store(
    tmp_path: Path, objects: bool
) -> None:
    phases = await simulate(SMALL, tmp_path, objects=objects)
    assert len(markdown(phases).splitlines()) == 2 + len(phases)
    *before, _, last = phases
    assert not any(phase.again for phase in before)
    assert last.name == "and every daemon, too"
    # A compile that is under way when Redis loses its lease may be done twice.
    assert (last.again <= SMALL.callers) is objects
