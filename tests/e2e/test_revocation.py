"""Keys trusted and revoked in a fleet, with real daemons on a real Valkey."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from wasmkiln import AttestationInvalid, Client, ConnectionFailed
from wasmkiln.attestation import peek

from tests.e2e import wasm
from tests.e2e.bearers import reload
from tests.e2e.daemon import ONE_ENGINE, TWO_ENGINES, Daemon, RedisDaemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.signing_keys import KeyDirectory, KeyPair
from tests.e2e.stored_values import rejected
from tests.e2e.test_cache import COMPILED, MEMORY, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

KEY = KeyPair()


# The settings of two daemons, whether one believes what the other signed, and what is logged.
Settings = Mapping[str, str]
FLEETS: dict[str, tuple[Settings, Settings, bool, str]] = {
    "told of no keys": ({}, {}, False, "WASMKILN_KEYS_DIR and WASMKILN_SIGNING_KEY"),
    "a shared key": (
        {"WASMKILN_SIGNING_KEY": KEY.pem},
        {"WASMKILN_SIGNING_KEY": KEY.pem},
        True,
        KEY.public.id,
    ),
    "a public key": (
        *({"WASMKILN_SIGNING_KEY": KEY.base64}, {"WASMKILN_TRUSTED_KEYS": KEY.public.hex}),
        *(True, KEY.public.id),
    ),
}


class Fleet:
    """Daemons with a key each, which trust one another, on one Valkey."""

    def __init__(self, folder: Path, url: str, *names: str) -> None:
        self.url = url
        self.states = {
            name: fresh_state(folder / name, own_keys=True, engines=ONE_ENGINE) for name in names
        }
        self.stores = {name: KeyDirectory.of(state) for name, state in self.states.items()}
        for store in self.stores.values():
            for theirs in self.stores.values():
                store.trust(theirs.public)

    def id_of(self, name: str) -> str:
        return self.stores[name].public.id

    def start(self, name: str, *flags: str, host_store: bool = False) -> Daemon:
        kind = Daemon if host_store else RedisDaemon
        return kind(self.states[name], flags, {"WASMKILN_REDIS_URL": self.url})

    def keys(self, name: str, *arguments: str) -> str:
        """Run ``wasmkilnd keys`` on a daemon's state."""
        return self.stores[name].run(*arguments)


@pytest.fixture
def valkey(tmp_path: Path, engines: Installed) -> Iterator[str]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running.url


def signer(client: Client, tag: int) -> str:
    """Return the id of the key that signed what a caller gets of a module."""
    found = peek(client.compile(wasm.adder(tag)).header.attestation)
    assert found
    return found[1]


@pytest.mark.parametrize(("one", "two", "believes", "logged"), FLEETS.values(), ids=FLEETS)
def test_daemons_believe_each_other_as_they_were_told(
    one: Settings, two: Settings, believes: bool, logged: str, tmp_path: Path, valkey: str
) -> None:
    states = [
        fresh_state(tmp_path / each, own_keys=True, engines=ONE_ENGINE) for each in ("one", "two")
    ]
    environs = [{"WASMKILN_REDIS_URL": valkey, **given} for given in (one, two)]
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
    if "WASMKILN_SIGNING_KEY" in two:
        assert not (tmp_path / "one" / "keys").exists()
    for secret in (KEY.base64, KEY.pem.splitlines()[1]):
        assert secret not in log


@pytest.mark.parametrize(
    ("how", "cause", "event"),
    [("revoke", "revoked", "key_revoked"), ("distrust", "stranger", "key_distrusted")],
)
def test_what_a_key_signed_is_refused_in_memory_host_store_and_redis_after_a_reload(
    tmp_path: Path, valkey: str, how: str, cause: str, event: str
) -> None:
    fleet = Fleet(tmp_path, valkey, "thief", "one")
    stolen = fleet.id_of("thief")
    audit = tmp_path / "audit.jsonl"
    with (
        fleet.start("thief") as thief,
        thief.client() as of_thief,
        fleet.start("one", "--audit-file", str(audit), host_store=True) as one,
        one.client(host_store_dir="none") as client,
    ):
        for tag in (1, 2):
            of_thief.compile(wasm.adder(tag))
        settled(of_thief)
        assert client.compile(wasm.adder(1)).header.origin == REDIS
        settled(client)
        fleet.keys("one", how, stolen)
        assert client.compile(wasm.adder(1)).header.origin == MEMORY
        reload(one)
        one.wait_for_log("artifacts dropped from memory: their key is not trusted")
        assert f'"{event}","key_id":"{stolen}"' in audit.read_text().replace(" ", "")
        assert client.compile(wasm.adder(1)).header.origin == COMPILED
        assert signer(client, 1) == fleet.id_of("one")
        assert one.metric("values_rejected_total", tier="host_store", cause=cause) == 1
        redis_before = one.metric("values_rejected_total", tier="redis", cause=cause)
        assert client.compile(wasm.adder(2)).header.origin == COMPILED
        after = one.metric("values_rejected_total", tier="redis", cause=cause)
        assert after == redis_before + 2, "the artifact, and the module"
        # A client that starts now refuses it, too, whoever serves it.
        trusted = fleet.stores["one"].folder / "trusted"
        with thief.client(trusted_keys=trusted) as careful:
            with pytest.raises(AttestationInvalid) as refused:
                careful.compile(wasm.adder(1))
            assert refused.value.metadata["cause"] == cause


def test_a_new_client_of_the_process_refuses_a_file_by_a_key_that_was_revoked_since(
    tmp_path: Path, engines: Installed
) -> None:
    state = fresh_state(tmp_path / "state", own_keys=True, engines=TWO_ENGINES)
    keys = KeyDirectory.of(state)
    before = keys.public.id

    def is_there() -> bool:
        """Load the module in a new client, from the file: nobody answers any more."""
        with Client(
            "127.0.0.1:1",
            host_store_dir=state / "host_store",
            trusted_keys=keys.folder / "trusted",
            max_attempts=1,
        ) as client:
            try:
                return bool(client.module(wasm.adder(1), engine="wasmtime"))
            except ConnectionFailed:
                return False

    with Daemon(state, ("--redis-url", "none")) as daemon, daemon.client() as client:
        assert client.host_file(wasm.adder(1), engine="wasmtime")
    assert is_there()
    keys.run("rotate")
    assert is_there()
    keys.run("revoke", before)
    assert not is_there()


def test_a_daemon_that_shares_its_directory_needs_to_be_told_of_nothing(
    tmp_path: Path, valkey: str
) -> None:
    """It believes the key that another one rotated in; one in use that is revoked is changed."""
    fleet = Fleet(tmp_path, valkey, "one", "two")
    before, shared = fleet.id_of("one"), ("--keys-dir", str(fleet.stores["one"].folder))
    with (
        fleet.start("one", *shared) as one,
        fleet.start("two", *shared) as two,
        one.client() as of_one,
        two.client() as of_two,
    ):
        assert signer(of_one, 1) == before
        fleet.keys("one", "rotate")
        fleet.keys("one", "revoke", before)
        reload(one)
        one.wait_for_log("signing key changed")
        after = fleet.id_of("one")
        for tag in (2, 3):
            assert signer(of_one, tag) == after != before
            settled(of_one)
            assert of_two.compile(wasm.adder(tag)).header.origin == REDIS
            assert signer(of_two, tag) == after
        assert rejected(two) == {}


def test_old_artifacts_are_compiled_again(tmp_path: Path, valkey: str) -> None:
    fleet = Fleet(tmp_path, valkey, "one")
    with (
        fleet.start("one", "--value-max-age-s", "3600", host_store=True) as one,
        one.client(host_store_dir="none") as client,
    ):
        client.compile(wasm.adder(1))
        settled(client)
    # The same values, as if an hour had passed.
    with (
        fleet.start("one", "--value-max-age-s", "0.001", host_store=True) as one,
        one.client(host_store_dir="none") as client,
    ):
        assert client.compile(wasm.adder(1)).header.origin == COMPILED
        for tier in ("host_store", "redis"):
            assert one.metric("values_rejected_total", tier=tier, cause="too_old") == 1
        # Memory is looked through too.
        eventually(lambda: client.compile(wasm.adder(1)).header.origin == COMPILED, "it stays")


def test_a_staged_rotation_has_no_value_rejected_at_any_step(tmp_path: Path, valkey: str) -> None:
    fleet = Fleet(tmp_path, valkey, "one", "two")
    first = fleet.id_of("one")
    with (
        fleet.start("one") as one,
        fleet.start("two") as two,
        one.client() as of_one,
        two.client() as of_two,
    ):
        tags = iter(range(1, 20))

        def share() -> str:
            """Have each use what the other made; return the key that the first one signs with."""
            keys = []
            for maker, user in ((of_one, of_two), (of_two, of_one)):
                tag = next(tags)
                assert maker.compile(wasm.adder(tag)).header.origin == COMPILED
                settled(maker)
                assert user.compile(wasm.adder(tag)).header.origin == REDIS
                keys.append(signer(maker, tag))
            assert rejected(one) == rejected(two) == {}
            return keys[0]

        steps: list[Callable[[], object]] = [
            lambda: fleet.keys("one", "generate", "--next"),
            lambda: reload(one),
            lambda: fleet.keys("two", "trust", fleet.keys("one", "show", "--next").strip()),
            lambda: reload(two),
            lambda: fleet.keys("one", "activate"),
        ]
        for step in steps:
            step()
            assert share() == first
        reload(one)
        assert share() == fleet.id_of("one") != first
