"""Signed artifacts, with real daemons and a real Valkey that an attacker may write to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.programs import Installed
from tests.e2e.signing_keys import KeyDirectory, KeyPair
from tests.e2e.stored_values import rejected
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server


@pytest.fixture
def valkey(tmp_path: Path, engines: Installed) -> Iterator[str]:
    """A Valkey to which every daemon of a test is connected."""
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running.url


KEY = KeyPair()


# The settings of two daemons, whether one believes what the other signed, and what is logged.
# A ``*`` in a path stands for the folder of the test.
Settings = Mapping[str, str]
FLEETS: dict[str, tuple[Settings, Settings, bool, str]] = {
    "each its own directory": (
        *({"KEYS_DIR": "*/one/keys"}, {"KEYS_DIR": "*/two/keys"}),
        *(False, "WASMKILN_KEYS_DIR"),
    ),
    "told of no keys": ({}, {}, False, "WASMKILN_SIGNING_KEY"),
    "a shared directory": ({"KEYS_DIR": "*/shared"}, {"KEYS_DIR": "*/shared"}, True, ""),
    "a shared key": ({"SIGNING_KEY": KEY.pem}, {"SIGNING_KEY": KEY.pem}, True, KEY.public.id),
    "a public key": (
        *({"SIGNING_KEY": KEY.base64}, {"TRUSTED_KEYS": KEY.public.hex}),
        *(True, KEY.public.id),
    ),
}


@pytest.mark.parametrize(("one", "two", "believes", "logged"), FLEETS.values(), ids=FLEETS)
def test_daemons_believe_each_other_as_they_were_told(
    one: Settings, two: Settings, believes: bool, logged: str, tmp_path: Path, valkey: str
) -> None:
    states = [
        fresh_state(tmp_path / each, own_keys=True, engines=ONE_ENGINE) for each in ("one", "two")
    ]
    environs = [
        {
            "WASMKILN_REDIS_URL": valkey,
            **{f"WASMKILN_{key}": text.replace("*", str(tmp_path)) for key, text in given.items()},
        }
        for given in (one, two)
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
    assert logged in log
    lines = [line for line in log.splitlines() if "stored value rejected" in line]
    if believes:
        assert (origins, counted, lines) == ({REDIS}, {}, [])
    else:
        assert (origins, counted) == ({COMPILED}, {"stranger": 4}), "artifacts, and the modules"
        assert KeyDirectory.of(tmp_path / "one").public.id in lines[0]
        assert len(lines) == 1
    if "SIGNING_KEY" in two:
        assert not (tmp_path / "one" / "keys").exists()
    for secret in (KEY.base64, KEY.pem.splitlines()[1]):
        assert secret not in log
