"""A thief has a key that daemons trust: real daemons, and the values that the thief stores.

Whoever can stamp a value can put anything into it. So each value here is about code that no engine
made, and names another trusted key, which would survive `wasmkilnd keys revoke` of the stolen one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import redis
from wasmkiln import ArtifactMismatch, Client
from wasmkiln.shared import ARTIFACT, entry_path
from wasmkilnd.cache.value import open_head, with_frames, written
from wasmkilnd.model import Artifact
from wasmkilnd.signing.keys import PrivateKey
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wire import payload_views

from tests.contract.host_store import host_store
from tests.contract.sealing import sealer
from tests.e2e import wasm
from tests.e2e.bearers import reload
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import names_of, rejected, value_of
from tests.e2e.test_cache import COMPILED, HOST_STORE, MEMORY, REDIS
from tests.e2e.test_object_store import OBJECTS, cache_command, objects_of, settled
from tests.frames import to_frames
from tests.servers.redis_server import binary_of, redis_server

MODULE = wasm.adder(1)
Fraud = Callable[[Artifact, Sealer], Artifact]


def forged_signature(good: Artifact, thief: Sealer) -> Artifact:
    """Other code, and what the key that signed the good one never signed."""
    other = changed(good)
    other = replace(other, sha256=hashlib.sha256(b"".join(payload_views(other.frames))).hexdigest())
    envelope = json.loads(thief.seal(other).attestation)
    envelope["signatures"][0]["keyid"] = key_of(good)
    text = json.dumps(envelope, sort_keys=True, separators=(",", ":"))
    return replace(other, attestation=text.encode())


def changed(good: Artifact, _: object = None) -> Artifact:
    """Other code below the attestation of the good one, which is genuine."""
    code = bytearray(b"".join(payload_views(good.frames)))
    code[-1] ^= 1
    return replace(good, frames=to_frames(bytes(code)), encoding="")


FRAUDS: dict[str, Fraud] = {"a forged signature": forged_signature, "other bytes": changed}


def key_of(artifact: Artifact) -> str:
    key_id = json.loads(artifact.attestation)["signatures"][0]["keyid"]
    assert isinstance(key_id, str)
    return key_id


@dataclass
class Fleet:
    """Two daemons with a key each, which trust one another and the thief's."""

    folder: Path
    server: redis.Redis
    url: str
    thief: PrivateKey

    def __post_init__(self) -> None:
        self.objects = self.folder / "objects"
        self.objects.mkdir()
        self.states = [
            fresh_state(self.folder / name, own_keys=True, engines=ONE_ENGINE)
            for name in ("one", "two")
        ]
        self.keys = [KeyDirectory.of(state) for state in self.states]
        for store in self.keys:
            for key in (*(each.public for each in self.keys), self.thief.public):
                store.trust(key)
        # What the first daemon makes of the module, which is then in the object store alone.
        with self.start(0) as daemon, daemon.client() as client:
            self.code = client.compile(MODULE).bytes
            settled(client)
        names = names_of(self.server, wasm.digest(MODULE))
        [self.name] = [each for each in names if b":compiled:" in each]
        _, self.object = objects_of(self.objects, MODULE)
        self.server.flushall()
        value = self.object.read_bytes()
        found = open_head(value, self.sealer(0))
        stored = [value[each.offset : each.ends] for each in found.frames]
        good = with_frames(found, [found.ready(*each) for each in enumerate(stored)])
        assert isinstance(good, Artifact)
        self.good = replace(good, frames=to_frames(self.code), encoding="")
        names_it = good.spec.fingerprint, good.module_sha256
        # What processes of the second daemon's host can map.
        self.file = entry_path(self.states[1] / "host_store", *names_it) / ARTIFACT

    def start(self, number: int) -> Daemon:
        environ = {
            "WASMKILN_REDIS_URL": self.url,
            "WASMKILN_OBJECT_STORE_URL": f"file://{self.objects}",
        }
        return Daemon(self.states[number], environ=environ)

    def sealer(self, number: int) -> Sealer:
        """Return what signs as a daemon does."""
        return sealer(PrivateKey.parse(self.keys[number].pair().pem))

    def serves(self, client: Client) -> tuple[int, bool]:
        """Return the tier that a client without keys is served from, and if the code is right."""
        try:
            found = client.compile(MODULE)
        except ArtifactMismatch:
            return -1, False
        settled(client)
        eventually(self.file.exists, "the host store lacks it")
        return found.header.origin, found.bytes == self.code

    def scrub(self, tier: str) -> list[str]:
        """Run the command with the second daemon's keys; return the causes of what is bad."""
        where = {
            "state_dir": self.states[1],
            "redis_url": self.url,
            "object_store_url": f"file://{self.objects}",
        }
        said = cache_command(3, "scrub", "--json", "--tier", tier, **where)
        *bad, last = [json.loads(line) for line in said.splitlines()]
        assert last["summary"]["deleted"] == len(bad)
        assert cache_command(0, "scrub", "--tier", tier, **where)
        return [each["cause"] for each in bad]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with (
        redis_server(binary_of("valkey"), tmp_path / "server") as running,
        redis.Redis.from_url(running.url) as server,
    ):
        yield Fleet(tmp_path, server, running.url, PrivateKey.generate())


@pytest.mark.parametrize("tier", ["redis", "object_store"])
@pytest.mark.parametrize("fraud", FRAUDS)
def test_nothing_that_the_thief_made_is_served_before_or_after_the_key_is_revoked(
    fleet: Fleet, fraud: str, tier: str
) -> None:
    thief = sealer(fleet.thief)
    value = b"".join(written(FRAUDS[fraud](fleet.good, thief), thief))
    # A name that is taken is not written again: the object stays until a daemon removes it.
    if tier == "redis":
        fleet.object.unlink()
        fleet.server.set(fleet.name, value, ex=1000)
    else:
        fleet.object.write_bytes(value)
    with fleet.start(1) as daemon, daemon.client(host_store_dir="none") as client:
        served = [fleet.serves(client)]
        counted, mapped = rejected(daemon), fleet.file.read_bytes()
        fleet.keys[1].run("revoke", fleet.thief.public.id)
        reload(daemon)
        nearer: list[Literal["memory", "host_store", "redis"]] = ["memory", "host_store", "redis"]
        for count in range(4):
            for each in nearer[:count]:
                client.evict(all=True, tier=each)
            served.append(fleet.serves(client))
    tiers = [COMPILED, MEMORY, HOST_STORE, REDIS, OBJECTS]
    assert served == [(each, True) for each in tiers]
    assert counted == {"mismatch": 1}
    assert mapped == fleet.code


def test_a_copy_goes_with_the_key_that_attested_it(fleet: Fleet) -> None:
    with fleet.start(1) as daemon, daemon.client(host_store_dir="none") as client:
        assert fleet.serves(client) == (OBJECTS, True)
        client.evict(all=True, tier="memory")
        client.evict(all=True, tier="host_store")
        assert fleet.serves(client) == (REDIS, True), "as the second daemon has stamped it"
        fleet.keys[1].run("revoke", fleet.keys[0].public.id)
        reload(daemon)
        assert fleet.serves(client) == (COMPILED, True)
        assert rejected(daemon).keys() == {"revoked"}


def test_copies_that_daemons_made_before_are_not_served(fleet: Fleet) -> None:
    own = fleet.sealer(1)
    value = b"".join(written(forged_signature(fleet.good, own), own))
    fleet.object.write_bytes(value)
    fleet.server.set(fleet.name, value, ex=1000)
    with fleet.start(1) as daemon, daemon.client(host_store_dir="none") as client:
        assert fleet.serves(client) == (COMPILED, True)
        assert rejected(daemon) == {"mismatch": 2}
    assert value_of(fleet.server, fleet.name) != value != fleet.object.read_bytes()


@pytest.mark.parametrize("fraud", FRAUDS)
async def test_scrub_finds_copies_that_daemons_made_before(fleet: Fleet, fraud: str) -> None:
    own = fleet.sealer(1)
    copy = FRAUDS[fraud](own.seal(fleet.good), sealer(fleet.thief))
    value = b"".join(written(copy, own))
    fleet.object.write_bytes(value)
    fleet.server.set(fleet.name, value)
    store = host_store(fleet.states[1] / "host_store", own)
    await store.start()
    await store.put(copy)
    await store.close()
    found = {tier: fleet.scrub(tier) for tier in ("redis", "object_store", "host_store")}
    cause = "mismatch" if fraud == "a forged signature" else "digest"
    assert found == {"redis": ["mismatch"], "object_store": ["mismatch"], "host_store": [cause]}
