"""Values in Redis that were damaged, swapped or forged: none is served, and each is replaced.

What a writer there can do, by what anybody sees of it: opaque bytes under names. Where
each part of a value is, what leases are forged and which heads are signed: ``tests/contract``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
import redis
from wasmkiln import Artifact, Client, ModuleNotLoaded

from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, RedisDaemon, fresh_state
from tests.e2e.programs import Installed
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import flips, names_of, rejected, value_of, values_of
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

ENGINE, OTHER_ENGINE = TWO_ENGINES
SMALL, OTHER = wasm.adder(1), wasm.adder(2)
LARGE = wasm.with_data(1_200_000, 1)
STRANGER = "stranger:"
"""The prefix of what a daemon with other keys stored, made of the same modules."""


@dataclass
class Site:
    """A daemon that runs, its Redis, and what belongs there."""

    daemon: RedisDaemon
    client: Client
    """It trusts the daemon's key alone, and so verifies every artifact."""
    server: redis.Redis
    good: Mapping[bytes, Artifact]
    """What the daemon compiled, by module."""
    values: Mapping[bytes, bytes]
    """All values of these modules as the daemon stored them."""
    of_module: Mapping[bytes, list[bytes]]
    """The names of each module's values."""
    of_artifact: Mapping[bytes, list[bytes]]
    """The names of each artifact's values, without those of its module."""
    rejections: int = field(init=False, default=0)
    """How many values the daemon had rejected when this was looked at last."""

    def served(self, module: bytes, changes: Mapping[bytes, bytes]) -> bool:
        """Change values, and have a module compiled; return whether Redis was believed.

        Whatever the values are, the answer is right; what was not believed is counted and replaced.
        """
        self.put(changes)
        found = self.asked(module)
        if found.header.origin == REDIS:
            return True
        assert found.header.origin == COMPILED
        if all(changes.values()):  # An empty value may pass for none.
            assert self.has_rejected()
        settled(self.client)
        assert self.asked(module).header.origin == REDIS
        return False

    def has_rejected(self) -> bool:
        """Return whether the daemon rejected a value since this was asked last."""
        before, self.rejections = self.rejections, sum(rejected(self.daemon).values())
        return self.rejections > before

    def asked(self, module: bytes) -> Artifact:
        """Return what a caller gets of whom memory knows nothing."""
        self.client.evict(everything=True, tier="memory")
        found = self.client.compile(module, engine=ENGINE)
        assert found.bytes == self.good[module].bytes
        assert found.header.fingerprint == self.good[module].header.fingerprint
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        for name, value in values.items():
            self.server.set(name, value, ex=1000)


@pytest.fixture(scope="module")
def site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        running = stack.enter_context(redis_server(binary_of("valkey"), folder / "server"))
        server = stack.enter_context(redis.Redis.from_url(running.url))
        environ = {"WASMKILN_REDIS_URL": running.url}
        stranger = fresh_state(folder / "stranger", own_keys=True, engines=TWO_ENGINES[:1])
        with (
            RedisDaemon(stranger, ("--redis-prefix", STRANGER), environ) as daemon,
            daemon.client() as client,
        ):
            for module in (SMALL, OTHER, LARGE):
                client.compile(module, engine=ENGINE)
            settled(client)
        state = fresh_state(folder / "state", own_keys=True, engines=TWO_ENGINES)
        daemon = stack.enter_context(RedisDaemon(state, environ=environ))
        trusted = KeyDirectory.of(state).public.hex
        client = stack.enter_context(daemon.client(trusted_keys=trusted))
        good: dict[bytes, Artifact] = {}
        values: dict[bytes, bytes] = {}
        of_module: dict[bytes, list[bytes]] = {}
        of_artifact: dict[bytes, list[bytes]] = {}
        for module in (SMALL, OTHER, LARGE):
            digest = client.load(module).sha256
            settled(client)
            of_module[module] = sorted(names_of(server, digest))
            good[module] = client.compile(module, engine=ENGINE)
            settled(client)
            values |= values_of(server, digest)
            of_artifact[module] = sorted(names_of(server, digest) - set(of_module[module]))
            assert of_module[module]
            assert of_artifact[module]
        yield Site(daemon, client, server, good, values, of_module, of_artifact)


@pytest.fixture(autouse=True)
def mended(site: Site) -> None:
    site.put(site.values)
    site.has_rejected()


Values = Iterable[bytes]


def spoilt(good: bytes) -> Values:
    """Return what was cut, lengthened or never a value."""
    dice = random.Random(1)
    yield from (good[: len(good) * quarter // 4] for quarter in range(4))
    yield from (good[:-1], good + b"\0", good + good, good[1:], b"\0" * len(good), b"nonsense")
    yield from (dice.randbytes(size) for size in (1, 64, len(good)))


def mixed(one: bytes, other: bytes, parts: int) -> Values:
    """Return the beginning of one with the rest of the other, wherever they were cut."""
    for part in range(1, parts):
        at = len(one) * part // parts
        yield from (one[:at] + other[at:], other[:at] + one[at:])


def of_another_module(site: Site) -> bytes:
    [name] = site.of_artifact[OTHER]
    return site.values[name]


def of_another_engine(site: Site) -> bytes:
    before = names_of(site.server, wasm.digest(SMALL))
    site.client.compile(SMALL, engine=OTHER_ENGINE)
    settled(site.client)
    [name] = names_of(site.server, wasm.digest(SMALL)) - before
    value = value_of(site.server, name)
    site.server.delete(name)
    return value


def the_module(site: Site) -> bytes:
    [name] = site.of_module[SMALL]
    return site.values[name]


def of_a_stranger(site: Site, name: bytes = b"") -> bytes:
    """Return what is made of the same module by the same engine, and so under the same name."""
    [artifact] = site.of_artifact[SMALL]
    return value_of(site.server, (name or artifact).replace(b"wasm:", STRANGER.encode(), 1))


# What is put in the place of the small artifact, and the cause of its rejection if there is one.
OF_THE_ARTIFACT: dict[str, tuple[Callable[[Site, bytes], Values], str]] = {
    "a bit flipped": (lambda _, good: flips(good, 24), ""),
    "cut, lengthened or no value": (lambda _, good: spoilt(good), ""),
    # These are signed by the daemon itself, of a module, an engine or a purpose.
    "of another module": (lambda site, _: [of_another_module(site)], "wrong_key"),
    "of another engine": (lambda site, _: [of_another_engine(site)], "wrong_key"),
    "the module": (lambda site, _: [the_module(site)], "wrong_key"),
    "mixed with another's": (lambda site, good: mixed(good, of_another_module(site), 4), ""),
    "signed by a stranger": (lambda site, _: [of_a_stranger(site)], "stranger"),
    "mixed with a stranger's": (lambda site, good: mixed(good, of_a_stranger(site), 8), ""),
}


@pytest.mark.parametrize("how", OF_THE_ARTIFACT)
def test_no_other_value_is_served(site: Site, how: str) -> None:
    [name] = site.of_artifact[SMALL]
    good = site.values[name]
    tamper, cause = OF_THE_ARTIFACT[how]
    for changed in tamper(site, good):
        count = rejected(site.daemon).get(cause, 0)
        # Of a mixture the code itself may be the same, whoever signed it.
        assert site.served(SMALL, {name: changed}) == (changed == good)
        assert not cause or rejected(site.daemon)[cause] > count


def test_what_is_as_it_was_stored_is_served_and_lives_for_a_week(site: Site) -> None:
    for module in site.good:
        assert site.served(module, {})
    assert not site.has_rejected()
    week_s = 7 * 24 * 3600
    header = site.client.compile(wasm.adder(9), engine=ENGINE).header
    settled(site.client)
    for name in names_of(site.server, header.module_sha256):
        assert week_s - 600 < site.server.ttl(name) <= week_s


def test_an_old_value_with_all_unchanged_is_used(site: Site) -> None:
    """It is what this daemon made of this module: docs/explanation/redis.md says so."""
    made = site.asked(SMALL)
    site.client.evict(module_sha256=made.header.module_sha256)
    assert site.asked(SMALL).header.attestation != made.header.attestation
    settled(site.client)
    assert site.served(SMALL, site.values)
    assert site.asked(SMALL).header.attestation == made.header.attestation
    assert not site.has_rejected()


def test_a_large_artifact_is_checked_to_its_end(site: Site) -> None:
    [name] = site.of_artifact[LARGE]
    good = site.values[name]
    stranger = value_of(site.server, name.replace(b"wasm:", STRANGER.encode(), 1))
    third = len(good) // 3
    for changed in (
        *flips(good, 3),
        *(good[:-1], good[third:], stranger),
        # A piece is gone, two have changed places, one is another's.
        good[:third] + good[2 * third :],
        good[third : 2 * third] + good[:third] + good[2 * third :],
        stranger[:third][::-1] + good[third:],
    ):
        assert not site.served(LARGE, {name: changed})
    site.server.delete(name)
    assert site.asked(LARGE).header.origin == COMPILED
    settled(site.client)


def test_a_key_of_another_kind_is_no_value(site: Site) -> None:
    """Nor does one in the place of the daemon's own records of a module cost a call."""
    names = list(site.server.scan_iter(f"wasm:*{wasm.digest(SMALL)}*"))
    assert len(names) > 2
    for fill in ("rpush", "pfadd"):
        for name in names:
            site.server.delete(name)
            getattr(site.server, fill)(name, "nonsense")
        assert site.asked(SMALL).header.origin == COMPILED
        settled(site.client)
    assert '"level": "error"' not in site.daemon.log


def test_a_module_that_is_not_what_its_name_says_is_not_compiled(site: Site) -> None:
    digest = wasm.digest(SMALL)
    [name], [other] = site.of_module[SMALL], site.of_module[OTHER]
    good = site.values[name]
    foreign = (site.values[other], of_a_stranger(site, name))
    for changed in (good[:-1], good + b"\0", b"nonsense", *foreign, *flips(good, 12), b""):
        site.client.evict(everything=True, tier="memory")
        site.server.delete(*site.of_artifact[SMALL])
        if changed:
            site.put({name: changed})
        else:
            site.server.delete(name)
            site.server.rpush(name, "nonsense")
        with pytest.raises(ModuleNotLoaded):
            site.client.compile(digest, engine=ENGINE)
        assert site.has_rejected()
        # The caller sends it again, and all is as before.
        assert site.client.compile(SMALL, engine=ENGINE).bytes == site.good[SMALL].bytes
        settled(site.client)
    site.client.evict(everything=True, tier="memory")
    site.server.delete(*site.of_artifact[SMALL])
    again = site.client.compile(digest, engine=ENGINE)
    assert (again.header.origin, again.bytes) == (COMPILED, site.good[SMALL].bytes)
