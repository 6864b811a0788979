"""Every kind of Redis, each started once."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.servers.deployments import KINDS_OF_REDIS, Deployment


@pytest.fixture(scope="session", params=KINDS_OF_REDIS)
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """One kind after the other."""
    with KINDS_OF_REDIS[request.param](tmp_path_factory.mktemp(request.param[:8])) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect what a file's tests have left: a socket that is open fails that file, not another."""
    yield
    gc.collect()
