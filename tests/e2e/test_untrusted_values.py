"""Values in Redis that were damaged, swapped or forged: none is served, and each is replaced."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
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

    def mend(self) -> None:
        """Put back what the daemon had stored."""
        self.put(self.values)


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
    site.mend()
    site.has_rejected()


def test_what_is_as_it_was_stored_is_served(site: Site) -> None:
    for module in site.good:
        assert site.served(module, {})
    assert not site.has_rejected()


def test_a_bit_flipped_anywhere_is_found(site: Site) -> None:
    [name] = site.of_artifact[SMALL]
    for changed in flips(site.values[name], 24):
        assert not site.served(SMALL, {name: changed})


def test_a_large_artifact_is_checked_to_its_end(site: Site) -> None:
    for name in site.of_artifact[LARGE]:
        for changed in flips(site.values[name], 3):
            assert not site.served(LARGE, {name: changed})
        assert not site.served(LARGE, {name: site.values[name][:-1]})
        site.server.delete(name)
        assert site.asked(LARGE).header.origin == COMPILED
        settled(site.client)


def test_what_was_cut_lengthened_or_never_a_value_is_found(site: Site) -> None:
    [name] = site.of_artifact[SMALL]
    good = site.values[name]
    dice = random.Random(1)
    cuts = [good[: len(good) * quarter // 4] for quarter in range(4)]
    others = [
        *(good[:-1], good + b"\0", good + good, good[1:], b"\0" * len(good), b"nonsense"),
        *(dice.randbytes(size) for size in (1, 64, len(good))),
    ]
    for changed in (*cuts, *others):
        assert not site.served(SMALL, {name: changed})


def test_a_key_of_another_kind_is_no_value(site: Site) -> None:
    [name] = site.of_artifact[SMALL]
    for fill in ("rpush", "sadd"):
        site.server.delete(name)
        getattr(site.server, fill)(name, "nonsense")
        assert site.asked(SMALL).header.origin == COMPILED
        settled(site.client)


def test_a_value_that_belongs_elsewhere_is_refused(site: Site) -> None:
    """All of these are signed by the daemon itself, of a module, an engine or a purpose."""
    [mine], [other] = site.of_artifact[SMALL], site.of_artifact[OTHER]
    before = names_of(site.server, wasm.digest(SMALL))
    site.client.compile(SMALL, engine=OTHER_ENGINE)
    settled(site.client)
    [of_engine] = names_of(site.server, wasm.digest(SMALL)) - before
    [of_module] = site.of_module[SMALL]
    foreign = [value_of(site.server, name) for name in (other, of_engine, of_module)]
    for value in foreign:
        count = rejected(site.daemon).get("wrong_key", 0)
        assert not site.served(SMALL, {mine: value})
        assert rejected(site.daemon)["wrong_key"] > count
    # A head of one and the rest of another, wherever it was cut.
    mixed = foreign[0]
    for quarter in range(1, 4):
        at = len(site.values[mine]) * quarter // 4
        assert not site.served(SMALL, {mine: site.values[mine][:at] + mixed[at:]})
        assert not site.served(SMALL, {mine: mixed[:at] + site.values[mine][at:]})


def test_what_a_stranger_signed_is_refused_however_good_it_is(site: Site) -> None:
    for module in (SMALL, LARGE):
        stored = values_of(site.server, wasm.digest(module), STRANGER)
        theirs = {
            name.replace(STRANGER.encode(), b"wasm:", 1): value for name, value in stored.items()
        }
        # It is made of the same module by the same engine, and so under the same names.
        assert set(site.of_artifact[module]) <= set(theirs)
        count = rejected(site.daemon).get("stranger", 0)
        assert not site.served(module, theirs)
        assert rejected(site.daemon)["stranger"] > count
    [name] = site.of_artifact[SMALL]
    ours = site.values[name]
    theirs_small = value_of(site.server, name.replace(b"wasm:", STRANGER.encode(), 1))
    for eighth in range(1, 8):
        at = len(ours) * eighth // 8
        for mixed in (ours[:at] + theirs_small[at:], theirs_small[:at] + ours[at:]):
            # The code itself is the same, whoever signed it.
            assert site.served(SMALL, {name: mixed}) == (mixed == ours)


def test_a_module_that_is_not_what_its_name_says_is_not_compiled(site: Site) -> None:
    digest = wasm.digest(SMALL)
    [name], [other] = site.of_module[SMALL], site.of_module[OTHER]
    good = site.values[name]
    stranger = value_of(site.server, name.replace(b"wasm:", STRANGER.encode(), 1))
    damages = [
        *(good[:-1], good + b"\0", b"nonsense", site.values[other], stranger),
        *flips(good, 12),
    ]
    for changed in damages:
        site.client.evict(everything=True, tier="memory")
        site.server.delete(*site.of_artifact[SMALL])
        site.put({name: changed})
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
