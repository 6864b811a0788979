"""Every kind of Redis, each started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.deployments import KINDS_OF_REDIS, Deployment


@pytest.fixture(scope="session", params=[*KINDS_OF_REDIS, "memory"])
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment | None]:
    """One kind after the other; None for the daemon's own memory."""
    if request.param == "memory":
        yield None
        return
    with KINDS_OF_REDIS[request.param](tmp_path_factory.mktemp(request.param[:8])) as running:
        yield running
