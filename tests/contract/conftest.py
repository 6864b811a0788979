"""Every kind of Redis, each started once; and a server of its own for each file."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import redis

from tests.servers.deployments import KINDS_OF_REDIS, Deployment
from tests.servers.redis_server import RedisServer, binary_of, redis_server


@pytest.fixture(scope="session", params=KINDS_OF_REDIS)
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """One kind after the other."""
    with KINDS_OF_REDIS[request.param](tmp_path_factory.mktemp(request.param[:8])) as running:
        yield running


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for the tests of one file."""
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def server(valkey: RedisServer) -> Iterator[redis.Redis]:
    """A client of that server, with nothing in it."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        yield client


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect what a file's tests have left: a socket that is open fails that file, not another."""
    yield
    gc.collect()
