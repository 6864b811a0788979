"""Workers with the hostile engine, in the daemon's Python; e2e/test_hostile_jobs.py has another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from wasmkilnd.engines.process import Worker

from tests.confinement import workers


@pytest.fixture(scope="module")
def confined_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workers.environment(tmp_path_factory.mktemp("confined"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def confined(confined_engine: Path) -> AsyncIterator[Worker]:
    async with workers.running(confined_engine) as worker:
        yield worker
