"""A short soak: what `make soak` does for minutes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.promises import broken
from tests.sizes import size
from tests.soak.run import Plan, run


@pytest.mark.timeout(900)
async def test_a_fleet_that_is_hit_from_all_sides_keeps_its_promises(tmp_path: Path) -> None:
    plan = Plan(seconds=size(12, 8), seed=4, small=True)
    checks, figures = await asyncio.wait_for(run(tmp_path, plan, print), 880)
    print(f"\n{figures}")
    assert broken(checks) == []
