"""Old values put back under their keys by somebody who can write to Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from wasmkiln import Artifact, Client
from wasmkilnd.signing.store import KeyStore

from tests.e2e import wasm
from tests.e2e.daemon import RedisDaemon, fresh_state
from tests.e2e.programs import Installed
from tests.e2e.test_attestation import rejected
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

NEW, OLD = "wasmtime-50.0.1", "wasmtime-49.0.0"
MODULE = wasm.adder(1)


class Site:
    """A daemon's state and its Redis, in which everything can be changed."""

    def __init__(self, folder: Path, url: str) -> None:
        self.state = fresh_state(folder / "state", own_keys=True, engines=(NEW, OLD))
        self.url = url
        self.direct = redis.Redis.from_url(url)

    @contextmanager
    def daemon(self, *flags: str) -> Iterator[tuple[RedisDaemon, Client]]:
        environ = {"WASMKILN_REDIS_URL": self.url}
        with RedisDaemon(self.state, flags, environ) as running, running.client() as client:
            yield running, client

    def value(self, artifact: Artifact) -> bytes:
        stored = self.direct.get(name_of(artifact))
        assert isinstance(stored, bytes)
        return stored


def name_of(artifact: Artifact) -> str:
    header = artifact.header
    return f"wasm:compiled:{{{header.module_sha256}}}:{header.fingerprint}"


@pytest.fixture
def site(tmp_path: Path, engines: Installed) -> Iterator[Site]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield Site(tmp_path, running.url)


def compiled(client: Client, engine: str = NEW) -> Artifact:
    made = client.compile(MODULE, engine=engine)
    settled(client)
    return made


def test_after_the_engine_or_the_format_changed_an_old_value_is_refused(site: Site) -> None:
    with site.daemon() as (daemon, client):
        old, new = compiled(client, OLD), compiled(client, NEW)
        assert name_of(old) != name_of(new)
        # What the old engine made, where the new engine's artifact belongs.
        other_format = bytearray(site.value(new))
        other_format[4] -= 1
        for count, (value, cause) in enumerate(
            [(site.value(old), "wrong_key"), (bytes(other_format), "version")], start=1
        ):
            site.direct.set(name_of(new), value)
            client.evict(module_sha256=new.header.module_sha256, tier="memory")
            again = compiled(client, NEW)
            assert (again.header.origin, again.header.engine.version) == (COMPILED, "50.0.1")
            assert rejected(daemon)[cause] == 1
            assert len(rejected(daemon)) == count


def test_after_the_key_changed_an_old_value_is_refused(site: Site) -> None:
    with site.daemon() as (_, client):
        old = site.value(made := compiled(client))
    keys = KeyStore(site.state / "keys")
    first = keys.ensure().public.id
    keys.rotate()
    keys.distrust(first)
    with site.daemon() as (daemon, client):
        assert compiled(client).header.origin == COMPILED
        assert rejected(daemon) == {"stranger": 2}  # the module, too
        site.direct.set(name_of(made), old)
        client.evict(everything=True, tier="memory")
        assert compiled(client).header.origin == COMPILED
        assert rejected(daemon) == {"stranger": 3}


def test_an_old_value_is_refused_by_its_age(site: Site) -> None:
    with site.daemon() as (_, client):
        old = site.value(made := compiled(client))
    with site.daemon("--value-max-age-s", "0.001") as (daemon, client):
        site.direct.set(name_of(made), old)
        assert compiled(client).header.origin == COMPILED
        assert rejected(daemon) == {"too_old": 1}


def test_what_is_left_an_old_value_with_all_unchanged_is_used(site: Site) -> None:
    """It is what this daemon made of this module: docs/explanation/trust-in-redis.md says so."""
    with site.daemon() as (daemon, client):
        old = site.value(made := compiled(client))
        client.compile(MODULE, engine=NEW, skip_cache_lookup=True)
        settled(client)
        assert site.value(made) != old
        site.direct.set(name_of(made), old)
        client.evict(module_sha256=made.header.module_sha256, tier="memory")
        again = compiled(client)
        assert again.header.origin == REDIS
        assert again.header.attestation == made.header.attestation
        assert rejected(daemon) == {}
