"""Pins in real daemons: what is pinned outlives floods, restarts and a Redis that forgets all."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from wasmkiln import Client, ModuleNotLoaded, ModulePinned
from wasmkiln.v1 import types_pb2
from wasmkiln.v1.admin_service_pb2 import Pin

from tests.e2e import processes, wasm
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.fixtures import a_valkey
from tests.e2e.programs import WASMKILN, Installed
from tests.servers.redis_server import RedisServer

KIB = 1024
DEAR = wasm.adder(1)
DIGEST = wasm.digest(DEAR)
SMALL = ("--memory-bytes", "300KiB", "--host-store-bytes", "400KiB", "--workers", "1")


valkey = a_valkey("--maxmemory", "8mb", "--maxmemory-policy", "volatile-lru")


def daemon(state: Path, url: str, *flags: str) -> Daemon:
    return Daemon(fresh_state(state, engines=ONE_ENGINE), ("--redis-url", url, *SMALL, *flags))


def eventually(happens: Callable[[], object]) -> None:
    processes.eventually(happens, "it does not come about")


def look(daemon: Daemon) -> None:
    """Have it look after its pins now."""
    daemon.process.send_signal(signal.SIGHUP)


def parts(pin: Pin) -> dict[str, tuple[int, bool]]:
    """Return how many artifacts each tier has, and whether it has the module."""
    return {tier.tier: (tier.artifacts, tier.module) for tier in pin.tiers}


def origin(client: Client) -> str:
    """Return from where the pinned module's artifact comes."""
    return types_pb2.Origin.Name(client.compile(DIGEST).header.origin).removeprefix("ORIGIN_")


def flood(client: Client, first: int) -> None:
    """Compile more than memory and the host store hold."""
    for tag in range(first, first + 30):
        client.compile(wasm.with_data(20 * KIB, tag))


def ttls(server: redis.Redis) -> set[int]:
    """Return the times to live of all values of the pinned module."""
    return {server.ttl(name) for name in server.scan_iter(f"wasm:*{DIGEST}*")}


def everywhere(client: Client) -> bool:
    """Return whether each tier has what belongs there of the pinned module."""
    [pin] = client.pins().pins
    return parts(pin) == {"memory": (1, True), "host_store": (1, False), "redis": (1, True)}


def test_a_pinned_module_outlives_floods_a_flush_evictions_and_a_restart(
    tmp_path: Path, valkey: RedisServer
) -> None:
    state, server = tmp_path / "state", redis.Redis.from_url(valkey.url)
    with daemon(state, valkey.url) as one, one.client() as client:
        with pytest.raises(ModuleNotLoaded):
            client.pin(DIGEST)
        client.compile(DEAR)
        pinned = client.pin(DIGEST)
        assert not pinned.redis_unreachable
        assert pinned.pin.module_sha256 == DIGEST
        assert parts(pinned.pin)["memory"] == (1, True)
        assert pinned.pin.created_at.ToSeconds() > 0
        eventually(lambda: everywhere(client))
        look(one)
        eventually(lambda: ttls(server) == {-1})

        flood(client, 0)
        tiers = {tier.tier: tier for tier in client.stats().tiers}
        assert tiers["memory"].evictions
        eventually(lambda: one.metric("tier_evictions_total", tier="host_store") > 0)
        assert tiers["memory"].pinned_entries == 2
        assert 0 < tiers["memory"].pinned_bytes < 20 * KIB
        assert client.stats().pins == 1
        assert everywhere(client)
        assert origin(client) == "MEMORY"
        for number in range(4000):
            server.set(f"junk:{number}", b"x" * 4000, ex=1000)
        assert int(server.info("stats")["evicted_keys"]) > 0
        assert everywhere(client)
        assert one.metric("pins") == 1
        assert one.metric("pinned_entry_bytes", tier="memory") > 0
        eventually(lambda: one.metric("pinned_entry_bytes", tier="host_store") > 0)
        assert one.metric("pinned_entry_bytes", tier="redis") > 0

        with pytest.raises(ModulePinned, match="unpin it first"):
            client.evict(DIGEST)
        assert client.evict(engine="wasmer-1.1.0").pinned == 3
        assert client.evict(all=True).pinned == 5
        assert everywhere(client)
        assert origin(client) == "MEMORY"

        server.flushdb()
        look(one)
        eventually(lambda: everywhere(client))
        assert ttls(server) == {-1}
        one.kill()

    # The pins are in the state directory, and an artifact that Redis lost in the host store.
    server.flushdb()
    with daemon(state, valkey.url) as again, again.client() as client:
        [pin] = client.pins().pins
        assert pin.module_sha256 == DIGEST
        flood(client, 30)
        assert origin(client) == "HOST_STORE"
        eventually(lambda: parts(client.pins().pins[0]).get("redis", (0, False))[0] == 1)
        client.load(DEAR)
        eventually(lambda: everywhere(client))
        assert ttls(server) == {-1}
        answer = client.unpin(DIGEST)
        assert answer.removed
        assert not answer.redis_unreachable
        assert min(ttls(server)) > 0
        assert not client.unpin(DIGEST).removed
        assert not client.pins().pins
        flood(client, 60)
        assert client.evict(DIGEST).pinned == 0
    server.close()


def test_pins_without_redis_by_the_command(tmp_path: Path, engines: Installed) -> None:
    state, file = tmp_path / "state", tmp_path / "dear.wasm"
    file.write_bytes(DEAR)

    def run(*words: str, address: str) -> subprocess.CompletedProcess[str]:
        command = [WASMKILN, "pin", *words, "--json", "--address", address]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with daemon(state, "none") as one, one.client() as client:
        client.compile(DEAR)
        added = run("add", str(file), address=one.address)
        assert added.returncode == 0, added.stderr
        [pin] = json.loads(added.stdout)["pins"]
        assert pin["module_sha256"] == DIGEST
    with daemon(state, "none") as again, again.client() as client:
        flood(client, 40)
        listed = json.loads(run("ls", address=again.address).stdout)["pins"]
        assert DIGEST in {each["module_sha256"] for each in listed}
        assert origin(client) == "HOST_STORE"
        removed = run("rm", DIGEST, address=again.address)
        assert json.loads(removed.stdout) == {"removed": 1, "redis_unreachable": False}
        missing = run("add", "ab" * 32, address=again.address)
        assert missing.returncode == 1
        assert "MODULE_NOT_LOADED" in missing.stderr
