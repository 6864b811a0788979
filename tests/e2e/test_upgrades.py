"""Versions of engines side by side on one Redis: none undoes another's work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from wasmkiln import Client
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import RedisDaemon, state_with
from tests.e2e.stored_values import names_of, rejected
from tests.e2e.test_cache import COMPILED, MEMORY, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

OLD, NEW = "wasmtime-49.0.0", "wasmtime-50.0.1"

SMALL = wasm.constant(1)
# Several pieces each, module and artifact.
LARGE = wasm.with_data(1_200_000, 1)
MODULES = (SMALL, LARGE)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running.url


class Fleet:
    """Daemons with different engines that share a Redis and keys."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._environ = {
            "WASMKILN_REDIS_URL": url,
            "WASMKILN_KEYS_DIR": str(folder / "keys"),
            "WASMKILN_WORKERS": "1",
        }
        self._started = 0
        self._direct = redis.Redis.from_url(url)

    def daemon(self, *engines: str) -> RedisDaemon:
        """Start a daemon with a state of its own, which serves some engines."""
        self._started += 1
        state = state_with(self._folder / f"d{self._started}", *engines)
        return RedisDaemon(state, environ=self._environ)

    def names(self) -> set[bytes]:
        """Return the names of all values of the modules."""
        return {name for module in MODULES for name in names_of(self._direct, wasm.digest(module))}


@pytest.fixture
def fleet(tmp_path: Path, server: str) -> Fleet:
    return Fleet(tmp_path, server)


def compiled_by(client: Client, *, engine: str = NEW) -> list[types_pb2.Origin]:
    """Compile each module, wait until it is stored; return where the artifacts came from."""
    origins = [client.compile(module, engine=engine).header.origin for module in MODULES]
    settled(client)
    return origins


def read_again(client: Client, *, engine: str = NEW) -> list[types_pb2.Origin]:
    """Have nothing in memory, and ask by digest alone; return where the artifacts came from."""
    client.evict(everything=True, tier="memory")
    return [client.compile(wasm.digest(module), engine=engine).header.origin for module in MODULES]


def test_another_engine_version_empties_nothing_and_is_evicted_alone(fleet: Fleet) -> None:
    with fleet.daemon(OLD) as old, old.client() as client:
        assert compiled_by(client, engine=OLD) == [COMPILED] * 2
        before = fleet.names()
        with fleet.daemon(OLD, NEW) as both, both.client() as upgraded:
            assert compiled_by(upgraded, engine=OLD) == [REDIS] * 2
            assert compiled_by(upgraded, engine=NEW) == [COMPILED] * 2
            # What was there is there, but for modules, which are stored anew and the same.
            assert before < fleet.names()
            assert read_again(client, engine=OLD) == [REDIS] * 2
            one, other = (upgraded.compile(LARGE, engine=engine).header for engine in (OLD, NEW))
            assert one.fingerprint != other.fingerprint
            assert one.artifact_sha256 != other.artifact_sha256
            # Each is evicted without the other.
            assert upgraded.evict(engine=NEW, tier="redis").artifacts == 2
            assert fleet.names() == before
            upgraded.compile(LARGE, engine=NEW, skip_cache_lookup=True)
            settled(upgraded)
            upgraded.evict(engine=OLD)
            assert read_again(upgraded, engine=NEW) == [COMPILED, REDIS]
            assert client.compile(LARGE, engine=OLD).header.origin == MEMORY
            assert rejected(old) == rejected(both) == {}
    # Back to the old version alone, as after a rollback.
    with fleet.daemon(OLD) as again, again.client() as client:
        assert read_again(client, engine=OLD) == [COMPILED] * 2
        settled(client)
        assert read_again(client, engine=OLD) == [REDIS] * 2
