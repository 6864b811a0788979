"""Old values put back under their keys by somebody who can write to Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from wasmkiln import Artifact, Client

from tests.e2e import wasm
from tests.e2e.daemon import RedisDaemon, fresh_state
from tests.e2e.programs import Installed
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import rejected, values_of
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

    def stored(self) -> dict[bytes, bytes]:
        """Return the values of the module and of all artifacts of it, by name."""
        return values_of(self.direct, wasm.digest(MODULE))

    def put_back(self, values: dict[bytes, bytes]) -> None:
        for name, value in values.items():
            self.direct.set(name, value)


@pytest.fixture
def site(tmp_path: Path, engines: Installed) -> Iterator[Site]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield Site(tmp_path, running.url)


def compiled(client: Client, engine: str = NEW) -> Artifact:
    made = client.compile(MODULE, engine=engine)
    settled(client)
    return made


def test_after_the_engine_changed_an_old_value_is_refused(site: Site) -> None:
    with site.daemon() as (daemon, client):
        compiled(client, OLD)
        before = site.stored()
        compiled(client, NEW)
        [name] = site.stored().keys() - before.keys()
        # What the old engine made, where the new engine's artifact belongs: it is not said which
        # of the values that was, so each of them in turn.
        for count, value in enumerate(before.values(), start=1):
            site.direct.set(name, value)
            client.evict(module_sha256=wasm.digest(MODULE), tier="memory")
            again = compiled(client, NEW)
            assert (again.header.origin, again.header.engine.version) == (COMPILED, "50.0.1")
            assert rejected(daemon) == {"wrong_key": count}


def test_after_the_key_changed_an_old_value_is_refused(site: Site) -> None:
    with site.daemon() as (_, client):
        compiled(client)
        old = site.stored()
    keys = KeyDirectory.of(site.state)
    first = keys.public.id
    keys.run("rotate")
    keys.run("distrust", first)
    with site.daemon() as (daemon, client):
        assert compiled(client).header.origin == COMPILED
        assert rejected(daemon).keys() == {"stranger"}
        before = rejected(daemon)["stranger"]
        site.put_back(old)
        client.evict(everything=True, tier="memory")
        assert compiled(client).header.origin == COMPILED
        assert rejected(daemon).keys() == {"stranger"}
        assert rejected(daemon)["stranger"] > before


def test_an_old_value_is_refused_by_its_age(site: Site) -> None:
    with site.daemon() as (_, client):
        compiled(client)
        old = site.stored()
    with site.daemon("--value-max-age-s", "0.001") as (daemon, client):
        site.put_back(old)
        assert compiled(client).header.origin == COMPILED
        assert rejected(daemon) == {"too_old": 1}


def test_what_is_left_an_old_value_with_all_unchanged_is_used(site: Site) -> None:
    """It is what this daemon made of this module: docs/explanation/redis.md says so."""
    with site.daemon() as (daemon, client):
        made = compiled(client)
        old = site.stored()
        client.evict(module_sha256=made.header.module_sha256)
        client.compile(MODULE, engine=NEW)
        settled(client)
        assert site.stored() != old
        site.put_back(old)
        client.evict(module_sha256=made.header.module_sha256, tier="memory")
        again = compiled(client)
        assert again.header.origin == REDIS
        assert again.header.attestation == made.header.attestation
        assert rejected(daemon) == {}
