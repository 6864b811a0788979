"""Workers with the hostile engine, and a machine for it to attack."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from wasmkilnd.engines.install import find_python
from wasmkilnd.engines.process import Worker

from tests.confinement import workers
from tests.confinement.workers import EVERYTHING
from tests.e2e.attempts import Machine, machine_of


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    key = folder / "signing.pem"
    key.write_text("the daemon's key")
    key.chmod(0o600)
    with machine_of(folder, os.getpid(), key) as machine:
        yield machine


@pytest.fixture(scope="module", params=["the daemon's Python", "CPython 3.10"])
def confined_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The hostile engine in each of the interpreters that engines live in."""
    python = sys.executable
    if request.param == "CPython 3.10":
        found = find_python(range(10, 11), Path("/nonexistent"))
        if found is None:
            pytest.skip("no CPython 3.10 is installed")
        python = str(found.path)
    return workers.environment(tmp_path_factory.mktemp("confined"), python=python)


@pytest.fixture(scope="module")
def bare_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workers.environment(tmp_path_factory.mktemp("bare"), EVERYTHING)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def confined(confined_engine: Path) -> AsyncIterator[Worker]:
    async with workers.running(confined_engine) as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(bare_engine: Path) -> AsyncIterator[Worker]:
    """A worker without any confinement, for the controls."""
    async with workers.running(bare_engine) as worker:
        yield worker
