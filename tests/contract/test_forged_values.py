"""Values that only the daemon's own code can forge: with whole stamps, of other code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from wasmkilnd import model, wire
from wasmkilnd.cache.value.format import HEADER_OFFSET
from wasmkilnd.model import STAMP_BYTES, CacheKey
from wasmkilnd.signing.keys import KeyStore, PrivateKey
from wasmkilnd.signing.sealer import Sealer

from tests.contract.sealing import sealer
from tests.doubles.no_sealer import NoSealer
from tests.doubles.shelf import read, stored
from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.programs import installed_engines
from tests.e2e.stored_values import rejected
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[str]:
    """A Valkey to which every daemon of a test is connected."""
    installed_engines()
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running.url


def test_an_attacker_who_computes_digests_anew_is_not_believed(valkey: str, tmp_path: Path) -> None:
    environ = {"WASMKILN_REDIS_URL": valkey, "WASMKILN_KEYS_DIR": str(tmp_path / "keys")}
    with (
        RedisDaemon(fresh_state(tmp_path / "a", engines=ONE_ENGINE), environ=environ) as one,
        one.client() as client,
    ):
        good, other = client.compile(wasm.adder(1)), client.compile(wasm.adder(2))
        settled(client)
    ours = KeyStore(tmp_path / "keys").ensure()
    thief, stranger = sealer(ours), sealer(PrivateKey.generate())
    key = CacheKey(good.header.module_sha256, good.header.fingerprint)
    name = f"wasm:compiled:{{{key.module_sha256}}}:{key.fingerprint}"
    with redis.Redis.from_url(valkey) as direct:
        value = direct.get(name)
        assert isinstance(value, bytes)
        real, _ = read({name.encode(): value}, key, thief)
        assert isinstance(real, model.Artifact)
        # Native code of another module, which every engine would run, under this key.
        code = other.bytes
        evil = replace(
            real,
            sha256=other.header.artifact_sha256,
            size_bytes=len(code),
            frames=wire.to_frames(code),
        )
        borrowed = replace(evil, attestation=other.header.attestation)
        attacks: list[tuple[Sealer, model.Artifact]] = [
            # By somebody who has no key of the fleet:
            (stranger, stranger.seal(evil)),
            (NoSealer(), evil),
            (Borrowed(value), evil),
            # And what would be left of one who could have stamps made, but no attestations:
            (thief, replace(evil, attestation=b"")),
            (thief, stranger.seal(evil)),
            (thief, evil),
            (thief, borrowed),
        ]
        with (
            RedisDaemon(fresh_state(tmp_path / "b", engines=ONE_ENGINE), environ=environ) as two,
            two.client(trusted_keys=ours.public.hex) as client,
        ):
            for stamper, attack in attacks:
                [forged] = stored(attack, stamper).values()
                direct.set(name, forged)
                client.evict(module_sha256=key.module_sha256, tier="memory")
                again = client.compile(wasm.adder(1))
                assert again.header.origin == COMPILED
                assert again.bytes == good.bytes
                settled(client)
            assert rejected(two) == {"unsigned": 1, "stranger": 3, "mismatch": 3}
            client.evict(module_sha256=key.module_sha256, tier="memory")
            assert client.compile(wasm.adder(1)).header.origin == REDIS


class Borrowed(NoSealer):
    """Puts the stamp of another value on its own."""

    def __init__(self, value: bytes) -> None:
        super().__init__()
        self._stamp = value[HEADER_OFFSET - STAMP_BYTES : HEADER_OFFSET]

    def stamp(self, message: bytes) -> bytes:
        return self._stamp


def test_a_value_of_another_format_is_refused(valkey: str, tmp_path: Path) -> None:
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    with (
        RedisDaemon(state, environ={"WASMKILN_REDIS_URL": valkey}) as daemon,
        daemon.client() as client,
        redis.Redis.from_url(valkey) as direct,
    ):
        header = client.compile(wasm.adder(1)).header
        settled(client)
        name = f"wasm:compiled:{{{header.module_sha256}}}:{header.fingerprint}"
        value = direct.get(name)
        assert isinstance(value, bytes)
        changed = bytearray(value)
        changed[4] -= 1
        direct.set(name, bytes(changed))
        client.evict(everything=True, tier="memory")
        assert client.compile(wasm.adder(1)).header.origin == COMPILED
        assert rejected(daemon) == {"version": 1}
