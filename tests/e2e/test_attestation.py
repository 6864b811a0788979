"""Signed artifacts, with real daemons and a real Valkey that an attacker may write to."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from wasmkiln import AttestationInvalid, Client

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, TWO_ENGINES, RedisDaemon, fresh_state
from tests.e2e.fixtures import a_valkey
from tests.e2e.programs import Installed
from tests.e2e.signing_keys import KeyDirectory, KeyPair
from tests.e2e.stored_values import rejected
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import RedisServer

valkey = a_valkey()
"""A Valkey to which every daemon of a test is connected."""


KEY = KeyPair()


@dataclass(frozen=True)
class Fleet:
    """The settings of two daemons, and whether one believes what the other signed.

    A ``*`` in a path stands for the folder of the test.
    """

    one: Mapping[str, str]
    two: Mapping[str, str]
    believes: bool
    logged: str = ""


FLEETS = {
    "each its own directory": Fleet(
        {"KEYS_DIR": "*/one/keys"}, {"KEYS_DIR": "*/two/keys"}, False, "WASMKILN_KEYS_DIR"
    ),
    "told of no keys": Fleet({}, {}, False, "WASMKILN_SIGNING_KEY"),
    "a shared directory": Fleet({"KEYS_DIR": "*/shared"}, {"KEYS_DIR": "*/shared"}, True),
    "a shared key": Fleet({"SIGNING_KEY": KEY.pem}, {"SIGNING_KEY": KEY.pem}, True, KEY.public.id),
    "a public key": Fleet(
        {"SIGNING_KEY": KEY.base64}, {"TRUSTED_KEYS": KEY.public.hex}, True, KEY.public.id
    ),
}


@pytest.mark.parametrize("name", FLEETS)
def test_daemons_believe_each_other_as_they_were_told(
    name: str, tmp_path: Path, valkey: RedisServer
) -> None:
    fleet = FLEETS[name]
    states = [
        fresh_state(tmp_path / each, own_keys=True, engines=ONE_ENGINE) for each in ("one", "two")
    ]
    environs = [
        {
            "WASMKILN_REDIS_URL": valkey.url,
            **{f"WASMKILN_{key}": text.replace("*", str(tmp_path)) for key, text in given.items()},
        }
        for given in (fleet.one, fleet.two)
    ]
    with (
        RedisDaemon(states[0], environ=environs[0]) as first,
        RedisDaemon(states[1], environ=environs[1]) as second,
    ):
        with first.client() as client:
            for tag in (1, 2):
                client.compile(wasm.adder(tag))
            settled(client)
        with second.client() as client:
            origins = {client.compile(wasm.adder(tag)).header.origin for tag in (1, 2)}
            counted = rejected(second)
            settled(client)
        log = first.log + second.log + first.banner + second.banner
    assert fleet.logged in log
    lines = [line for line in log.splitlines() if "stored value rejected" in line]
    if fleet.believes:
        assert (origins, counted, lines) == ({REDIS}, {}, [])
    else:
        assert (origins, counted) == ({COMPILED}, {"stranger": 4}), "artifacts, and the modules"
        assert KeyDirectory.of(tmp_path / "one").public.id in lines[0]
        assert len(lines) == 1
    if "SIGNING_KEY" in fleet.two:
        assert not (tmp_path / "one" / "keys").exists()
    for secret in (KEY.base64, KEY.pem.splitlines()[1]):
        assert secret not in log


def test_the_first_start_makes_safe_keys_and_the_client_believes_them(
    engines: Installed, tmp_path: Path
) -> None:
    state = fresh_state(tmp_path / "state", own_keys=True, engines=TWO_ENGINES)
    with RedisDaemon(state, ["--redis-url", "none"]) as daemon:
        assert stat.S_IMODE((state / "keys").stat().st_mode) == 0o700
        assert stat.S_IMODE((state / "keys" / "signing.pem").stat().st_mode) == 0o600
        with Client(daemon.address, trusted_keys=state / "keys" / "trusted") as client:
            artifact = client.compile(wasm.adder(1), engine="wasmtime")
            assert artifact.verify().claims.module_sha256 == artifact.header.module_sha256
            assert artifact.load()
        with (
            Client(daemon.address, trusted_keys=KeyPair().public.hex) as client,
            pytest.raises(AttestationInvalid, match="not trusted"),
        ):
            client.compile(wasm.adder(1), engine="wasmtime")
