"""Every kind of Redis, each started once; a server for each file; what commands leave behind."""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import structlog

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


@pytest.fixture
def kept_as_it_was(tmp_path: Path) -> Iterator[None]:
    """Undo what a command does to this process; see that it made no state directory."""
    root = logging.getLogger()
    handler, structured = signal.getsignal(signal.SIGTERM), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    # What a command sets up for its own process stays here.
    signal.signal(signal.SIGTERM, handler)
    structlog.configure(**structured)
    root.handlers[:] = handlers
    root.setLevel(level)
    assert not (tmp_path / "state").exists()  # Looking makes neither keys nor anything else.
