"""Versions of the daemon with other formats of values, side by side on one Redis."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from wasmkiln import Client
from wasmkiln.v1 import types_pb2
from wasmkilnd.fingerprint import CACHE_FORMAT

from tests.e2e import wasm
from tests.e2e.daemon import RedisDaemon, state_with
from tests.e2e.programs import WASMKILND, installed_engines
from tests.e2e.stored_values import rejected
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

NEW = "wasmtime-50.0.1"
OTHER_FORMAT = (
    sys.executable,
    str(Path(__file__).with_name("other_format.py")),
    str(CACHE_FORMAT + 1),
)

SMALL = wasm.constant(1)
# Several pieces each, module and artifact.
LARGE = wasm.with_data(1_200_000, 1)
MODULES = (SMALL, LARGE)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    installed_engines()
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running.url


class Fleet:
    """Daemons of different versions that share a Redis and keys."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._environ = {
            "WASMKILN_REDIS_URL": url,
            "WASMKILN_KEYS_DIR": str(folder / "keys"),
            "WASMKILN_WORKERS": "1",
        }
        self._started = 0
        self._direct = redis.Redis.from_url(url)

    def daemon(self, *engines: str, other_format: bool = False) -> RedisDaemon:
        """Start a daemon with a state of its own, which serves some engines."""
        self._started += 1
        state = state_with(self._folder / f"d{self._started}", *engines)
        command = OTHER_FORMAT if other_format else (WASMKILND,)
        return RedisDaemon(state, environ=self._environ, command=command)

    def stored(self) -> dict[bytes, bytes]:
        """Return all that is in Redis, but for what Evicts left, and counts of uses."""
        others = (b"wasm:mark:", b"wasm:uses:")
        names = [name for name in self._direct.scan_iter() if not name.startswith(others)]
        return {name: self._value(name) for name in names}

    def _value(self, name: bytes) -> bytes:
        value = self._direct.get(name)
        assert isinstance(value, bytes)
        return value


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


def test_two_formats_live_side_by_side_and_a_downgrade_finds_all_again(fleet: Fleet) -> None:
    with fleet.daemon(NEW) as now, now.client() as here:
        assert compiled_by(here) == [COMPILED] * 2
        before = fleet.stored()
        with fleet.daemon(NEW, other_format=True) as later, later.client() as there:
            # Nothing of the other's is read, and nothing of it is touched.
            assert compiled_by(there) == [COMPILED] * 2
            assert read_again(there) == [REDIS] * 2
            after = fleet.stored()
            assert len(after) == 2 * len(before)
            assert before.items() <= after.items()
            # From an artifact that is gone, each finds its own module.
            for client in (here, there):
                assert read_again(client) == [REDIS] * 2
                client.evict(engine=NEW)
                assert read_again(client) == [COMPILED] * 2
                settled(client)
            assert fleet.stored().keys() == after.keys()
            assert rejected(now) == rejected(later) == {}
            # Evicting an engine's artifacts means those of one's own format.
            there.evict(engine=NEW)
            assert read_again(here) == [REDIS] * 2
    with fleet.daemon(NEW) as again, again.client() as client:
        assert read_again(client) == [REDIS] * 2
        assert rejected(again) == {}


def test_evicting_a_module_takes_it_in_every_format(fleet: Fleet) -> None:
    with fleet.daemon(NEW) as now, fleet.daemon(NEW, other_format=True) as later:
        for daemon in (now, later):
            with daemon.client() as client:
                compiled_by(client)
        with now.client() as client:
            client.evict(module_sha256=wasm.digest(LARGE))
        left = fleet.stored()
        assert len(left) == 4  # The small one: module and artifact, in two formats.
        assert not any(wasm.digest(LARGE).encode() in name for name in left)
