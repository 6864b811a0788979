"""Daemons that start while Redis has a fault: they serve, log it once, and log its end."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import RedisDaemon, state_with
from tests.e2e.test_cache import settled
from tests.faults.material import ENGINE
from tests.faults.proxy import GOOD, Line, Proxy
from tests.servers.redis_server import binary_of, redis_server

LINES = {
    "refuses": (Line(refuse=True), "cannot reach Redis"),
    "never answers": (Line(swallow=True), "does not answer in time"),
    "answers garbage": (Line(garbage=b"+HELLO\r\n?\r\n"), "Redis"),
}


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with (
        redis_server(binary_of("valkey"), tmp_path / "server") as running,
        Proxy(Path(running.url.removeprefix("unix://"))) as line,
    ):
        yield line


def events(daemon: RedisDaemon, *names: str) -> list[str]:
    """Return the events of the log with one of these names, in order."""
    logged = [json.loads(line).get("event") for line in list(daemon.log_lines)]
    return [event for event in logged if event in names]


@pytest.mark.parametrize(("line", "why"), LINES.values(), ids=LINES)
def test_a_daemon_starts_without_redis_says_so_once_and_takes_it_back(
    proxy: Proxy, tmp_path: Path, line: Line, why: str
) -> None:
    proxy.set(line)
    environ = {
        "WASMKILN_REDIS_URL": f"redis://127.0.0.1:{proxy.port}",
        "WASMKILN_REDIS_TIMEOUT_S": "0.3",
    }
    with (
        RedisDaemon(state_with(tmp_path / "state", ENGINE), environ=environ) as daemon,
        daemon.client() as client,
    ):
        assert "which does not answer yet" in daemon.banner
        for tag in range(20):
            header = client.compile(wasm.constant(tag)).header
            assert header.origin == types_pb2.ORIGIN_COMPILED
        stats = client.stats()
        assert not stats.redis_up
        assert why in stats.redis_detail
        assert stats.pending_writes == 40
        assert client.health() == "SERVING"
        with urllib.request.urlopen(f"{daemon.admin_url}/readyz") as answer:
            assert answer.read().decode().startswith("ready; ")
        assert events(daemon, "tier is down", "tier is up again") == ["tier is down"]
        proxy.set(GOOD)
        deadline = time.monotonic() + 30
        while not client.stats().redis_up:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        settled(client)
        for tag in range(20):
            client.evict(module_sha256=wasm.digest(wasm.constant(tag)), tier="memory")
            header = client.compile(wasm.constant(tag)).header
            assert header.origin == types_pb2.ORIGIN_REDIS
        with urllib.request.urlopen(f"{daemon.admin_url}/readyz") as answer:
            assert answer.read() == b"ready\n"
        assert events(daemon, "tier is down", "tier is up again") == [
            "tier is down",
            "tier is up again",
        ]
