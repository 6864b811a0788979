"""Values in Redis that were damaged, swapped or forged: none is served, and each is replaced.

What a writer there can do, by what anybody sees of it: opaque bytes under names. Where each part of
a value is, what leases are forged and which heads are signed: ``tests/contract``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import redis
from wasmkiln import Artifact, Client, ModuleNotLoaded

from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, RedisDaemon, fresh_state
from tests.e2e.programs import Installed
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import flips, names_of, rejected, value_of
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

ENGINE, OTHER_ENGINE = TWO_ENGINES
SMALL, OTHER = wasm.adder(1), wasm.adder(2)
OURS, THEIRS = "wasm:", "stranger:"
"""The prefixes of the daemon, and of one with other keys."""
Values = Iterable[bytes]


@dataclass(frozen=True)
class Stored:
    """What a daemon compiled of a module and stored: a value for each, and their names."""

    artifact: Artifact
    name: bytes
    value: bytes
    module_name: bytes
    module: bytes


def stored(client: Client, server: redis.Redis, prefix: str) -> dict[bytes, Stored]:
    """Have a daemon compile the modules of these tests; return what it stored, by module."""
    found = {}
    for module in (SMALL, OTHER):
        digest = client.load(module).sha256
        settled(client)
        [module_name] = names_of(server, digest, prefix)
        artifact = client.compile(module, engine=ENGINE)
        settled(client)
        [name] = names_of(server, digest, prefix) - {module_name}
        values = value_of(server, name), value_of(server, module_name)
        found[module] = Stored(artifact, name, values[0], module_name, values[1])
    return found


@dataclass
class Site:
    """A daemon that runs, its Redis, and what belongs there."""

    daemon: RedisDaemon
    client: Client
    """It trusts the daemon's key alone, and so verifies every artifact."""
    server: redis.Redis
    ours: dict[bytes, Stored]
    theirs: dict[bytes, Stored]
    """What the stranger made of the same modules by the same engine."""
    rejections: int = 0
    """How many values the daemon had rejected when this was looked at last."""

    def served(self, module: bytes, value: bytes | None = None) -> bool:
        """Put a value in the artifact's place, and have its module compiled.

        Whatever it is, the answer is right; what is not believed is counted and replaced. Return
        whether Redis was believed.
        """
        if value is not None:
            self.server.set(self.ours[module].name, value, ex=1000)
        found = self.asked(module)
        if found.header.origin == REDIS:
            return True
        assert found.header.origin == COMPILED
        assert self.has_rejected() or not value  # An empty value may pass for none.
        settled(self.client)
        assert self.asked(module).header.origin == REDIS
        return False

    def has_rejected(self) -> bool:
        """Return whether the daemon rejected a value since this was asked last."""
        before, self.rejections = self.rejections, sum(rejected(self.daemon).values())
        return self.rejections > before

    def asked(self, module: bytes) -> Artifact:
        """Return what a caller gets of whom memory knows nothing."""
        self.client.evict(all=True, tier="memory")
        found, good = self.client.compile(module, engine=ENGINE), self.ours[module].artifact
        assert found.bytes == good.bytes
        assert found.header.fingerprint == good.header.fingerprint
        return found


@pytest.fixture(scope="module")
def running_site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        running = stack.enter_context(redis_server(binary_of("valkey"), folder / "server"))
        server = stack.enter_context(redis.Redis.from_url(running.url))

        def start(name: str, prefix: str) -> RedisDaemon:
            state = fresh_state(folder / name, own_keys=True, engines=TWO_ENGINES)
            flags = ("--redis-url", running.url, "--redis-prefix", prefix)
            return stack.enter_context(RedisDaemon(state, flags))

        with start("stranger", THEIRS) as stranger, stranger.client() as client:
            theirs = stored(client, server, THEIRS)
        daemon = start("state", OURS)
        trusted = KeyDirectory.of(daemon.state_dir).public.hex
        client = stack.enter_context(daemon.client(trusted_keys=trusted))
        yield Site(daemon, client, server, stored(client, server, OURS), theirs)


@pytest.fixture
def site(running_site: Site) -> Site:
    """The site, where all is as it was stored."""
    for each in running_site.ours.values():
        running_site.server.set(each.name, each.value, ex=1000)
        running_site.server.set(each.module_name, each.module, ex=1000)
    running_site.has_rejected()
    return running_site


def spoilt(good: bytes) -> Values:
    """Return what was cut, lengthened or never a value."""
    dice = random.Random(1)
    yield from (good[: len(good) * quarter // 4] for quarter in range(4))
    yield from (good[:-1], good + b"\0", good + good, good[1:], b"\0" * len(good), b"nonsense")
    yield from (dice.randbytes(size) for size in (1, 64, len(good)))


def of_another_engine(site: Site) -> bytes:
    before = names_of(site.server, wasm.digest(SMALL))
    site.client.compile(SMALL, engine=OTHER_ENGINE)
    settled(site.client)
    [name] = names_of(site.server, wasm.digest(SMALL)) - before
    value = value_of(site.server, name)
    site.server.delete(name)
    return value


# What is put in the place of the small artifact, and the cause of its rejection if there is one.
OF_THE_ARTIFACT: dict[str, tuple[Callable[[Site, bytes], Values], str]] = {
    "a bit flipped": (lambda _, good: flips(good, 24), ""),
    "cut, lengthened or no value": (lambda _, good: spoilt(good), ""),
    # These are signed by the daemon itself, of a module, an engine or a purpose.
    "of another module": (lambda site, _: [site.ours[OTHER].value], "wrong_key"),
    "of another engine": (lambda site, _: [of_another_engine(site)], "wrong_key"),
    "the module": (lambda site, _: [site.ours[SMALL].module], "wrong_key"),
    "signed by a stranger": (lambda site, _: [site.theirs[SMALL].value], "stranger"),
}


@pytest.mark.parametrize("how", OF_THE_ARTIFACT)
def test_no_other_value_is_served(site: Site, how: str) -> None:
    good = site.ours[SMALL].value
    tamper, cause = OF_THE_ARTIFACT[how]
    for changed in tamper(site, good):
        count = rejected(site.daemon).get(cause, 0)
        assert not site.served(SMALL, changed)
        assert not cause or rejected(site.daemon)[cause] > count
    assert site.served(SMALL, good)
    assert not site.has_rejected()


def test_an_old_value_with_all_unchanged_is_used(site: Site) -> None:
    """It is what this daemon made of this module: docs/explanation/shared-tiers.md says so."""
    old = site.ours[SMALL]
    site.client.evict(wasm.digest(SMALL))
    assert site.asked(SMALL).header.attestation != old.artifact.header.attestation
    settled(site.client)
    assert site.served(SMALL, old.value)
    assert site.asked(SMALL).header.attestation == old.artifact.header.attestation
    assert not site.has_rejected()


def test_a_module_that_is_not_what_its_name_says_is_not_compiled(site: Site) -> None:
    digest, ours = wasm.digest(SMALL), site.ours[SMALL]
    good, name = ours.module, ours.module_name
    foreign = (site.ours[OTHER].module, site.theirs[SMALL].module)
    for changed in (good[:-1], good + b"\0", b"nonsense", *foreign, *flips(good, 12), b""):
        site.client.evict(all=True, tier="memory")
        site.server.delete(ours.name, name)
        if changed:
            site.server.set(name, changed, ex=1000)
        else:
            site.server.rpush(name, "nonsense")
        with pytest.raises(ModuleNotLoaded):
            site.client.compile(digest, engine=ENGINE)
        assert site.has_rejected()
        # The caller sends it again, and all is as before.
        assert site.client.compile(SMALL, engine=ENGINE).bytes == ours.artifact.bytes
        settled(site.client)
    site.client.evict(all=True, tier="memory")
    site.server.delete(ours.name)
    again = site.client.compile(digest, engine=ENGINE)
    assert (again.header.origin, again.bytes) == (COMPILED, ours.artifact.bytes)
