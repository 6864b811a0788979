"""A short attack: what `make attack` does for minutes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.attack.run import judge, markdown, run
from tests.attack.ways import WAYS
from tests.promises import broken
from tests.sizes import size


@pytest.mark.timeout(900)
async def test_honest_callers_are_served_while_the_daemon_is_attacked(tmp_path: Path) -> None:
    figures = await asyncio.wait_for(run(tmp_path, list(WAYS), size(3.0, 1.0), print), 880)
    checks = judge(figures)
    print(f"\n{markdown(figures, checks)}")
    assert broken(checks) == []
