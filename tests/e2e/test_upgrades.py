"""Versions of engines side by side on one Redis: none undoes another's work."""

from __future__ import annotations

import itertools
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


def compiled_by(client: Client, *, engine: str = NEW) -> list[types_pb2.Origin]:
    """Compile each module, wait until it is stored; return where the artifacts came from."""
    origins = [client.compile(module, engine=engine).header.origin for module in MODULES]
    settled(client)
    return origins


def read_again(client: Client, *, engine: str = NEW) -> list[types_pb2.Origin]:
    """Have nothing in memory, and ask by digest alone; return where the artifacts came from."""
    client.evict(everything=True, tier="memory")
    return [client.compile(wasm.digest(module), engine=engine).header.origin for module in MODULES]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running.url


def test_another_engine_version_empties_nothing_and_is_evicted_alone(
    tmp_path: Path, server: str
) -> None:
    environ = {"WASMKILN_REDIS_URL": server, "WASMKILN_KEYS_DIR": str(tmp_path / "keys")}
    direct, numbers = redis.Redis.from_url(server), itertools.count()

    def daemon(*engines: str) -> RedisDaemon:
        """A daemon with a state of its own, which serves some engines, on one Redis."""
        return RedisDaemon(state_with(tmp_path / f"d{next(numbers)}", *engines), environ=environ)

    def names() -> set[bytes]:
        """Return the names of all values of the modules."""
        return {name for module in MODULES for name in names_of(direct, wasm.digest(module))}

    with daemon(OLD) as old, old.client() as client:
        assert compiled_by(client, engine=OLD) == [COMPILED] * 2
        before = names()
        with daemon(OLD, NEW) as both, both.client() as upgraded:
            assert compiled_by(upgraded, engine=OLD) == [REDIS] * 2
            assert compiled_by(upgraded, engine=NEW) == [COMPILED] * 2
            # What was there is there, but for modules, which are stored anew and the same.
            assert before < names()
            assert read_again(client, engine=OLD) == [REDIS] * 2
            one, other = (upgraded.compile(LARGE, engine=engine).header for engine in (OLD, NEW))
            assert one.fingerprint != other.fingerprint
            assert one.artifact_sha256 != other.artifact_sha256
            # Each is evicted without the other.
            assert upgraded.evict(engine=NEW, tier="redis").artifacts == 2
            assert names() == before
            upgraded.compile(LARGE, engine=NEW, skip_cache_lookup=True)
            settled(upgraded)
            upgraded.evict(engine=OLD)
            assert read_again(upgraded, engine=NEW) == [COMPILED, REDIS]
            assert client.compile(LARGE, engine=OLD).header.origin == MEMORY
            assert rejected(old) == rejected(both) == {}
    # Back to the old version alone, as after a rollback.
    with daemon(OLD) as again, again.client() as client:
        assert read_again(client, engine=OLD) == [COMPILED] * 2
        settled(client)
        assert read_again(client, engine=OLD) == [REDIS] * 2
