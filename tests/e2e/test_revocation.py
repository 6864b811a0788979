"""Keys revoked in a fleet, with real daemons on a real Valkey."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from wasmkiln import Client
from wasmkiln.attestation import peek

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, Daemon, RedisDaemon, fresh_state
from tests.e2e.programs import Installed
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import rejected
from tests.e2e.test_cache import COMPILED, MEMORY, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server


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


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def reload(daemon: Daemon) -> None:
    lines = len(daemon.log_lines)
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: any('"reloaded"' in line for line in daemon.log_lines[lines:]))


def test_a_revoked_key_is_refused_in_memory_host_store_and_redis(
    tmp_path: Path, valkey: str
) -> None:
    fleet = Fleet(tmp_path, valkey, "thief", "one", "two")
    stolen = fleet.id_of("thief")
    with ExitStack() as stack:
        thief = stack.enter_context(fleet.start("thief"))
        of_thief = stack.enter_context(thief.client())
        of_thief.compile(wasm.adder(1))
        of_thief.compile(wasm.adder(2))
        settled(of_thief)
        audit = tmp_path / "audit.jsonl"
        one = stack.enter_context(fleet.start("one", "--audit-file", str(audit), host_store=True))
        client = stack.enter_context(one.client(host_store_dir="none"))
        assert client.compile(wasm.adder(1)).header.origin == REDIS
        settled(client)
        assert client.compile(wasm.adder(1)).header.origin == MEMORY
        # Revoked by another daemon of the fleet, which this one hears of through Redis.
        fleet.keys("two", "revoke", stolen)
        two = stack.enter_context(fleet.start("two"))
        of_two = stack.enter_context(two.client())
        assert of_two.compile(wasm.adder(2)).header.origin == COMPILED
        assert rejected(two)["revoked"]
        reload(one)
        one.wait_for_log("artifacts dropped from memory: their key is revoked")
        assert f'"key_revoked","key_id":"{stolen}"' in audit.read_text().replace(" ", "")
        assert client.compile(wasm.adder(1)).header.origin == COMPILED
        assert signer(client, 1) == fleet.id_of("one")
        assert one.metric("values_rejected_total", tier="host_store", cause="revoked") == 1
        # Deleting the statement undoes nothing: each daemon keeps it, and writes it again.
        name = f"wasm:revoked:{stolen}"
        with redis.Redis.from_url(valkey) as direct:
            assert direct.delete(name) == 1
            assert stolen in fleet.stores["one"].revoked()
            one.stop()
            again = stack.enter_context(fleet.start("one"))
            assert direct.exists(name) == 1
            of_thief.compile(wasm.adder(3))
            settled(of_thief)
            client = stack.enter_context(again.client())
            assert client.compile(wasm.adder(3)).header.origin == COMPILED
        # The daemon whose key it is says so, and goes on by itself.
        reload(thief)
        thief.wait_for_log("another daemon revoked")
        assert of_thief.compile(wasm.adder(1)).header.origin == MEMORY


def test_what_was_signed_before_the_date_is_served_and_compiled_again(
    tmp_path: Path, valkey: str
) -> None:
    fleet = Fleet(tmp_path, valkey, "old", "new")
    with fleet.start("old") as old, old.client() as client:
        client.compile(wasm.adder(1))
        settled(client)
    fleet.keys("new", "revoke", fleet.id_of("old"), "--since", "2100-01-01")
    with fleet.start("new") as new, new.client() as client:
        served = client.compile(wasm.adder(1))
        assert served.header.origin == REDIS
        found = peek(served.header.attestation)
        assert found
        assert found[1] == fleet.id_of("old")
        until(lambda: signer(client, 1) == fleet.id_of("new"))
        settled(client)
        client.evict(everything=True, tier="memory")
        again = client.compile(wasm.adder(1))
        assert (again.header.origin, signer(client, 1)) == (REDIS, fleet.id_of("new"))
        assert rejected(new) == {}


def test_a_directory_that_revokes_the_key_in_use_makes_the_daemon_change_it(
    tmp_path: Path, valkey: str
) -> None:
    fleet = Fleet(tmp_path, valkey, "one")
    before = fleet.id_of("one")
    with fleet.start("one") as one, one.client() as client:
        assert signer(client, 1) == before
        fleet.keys("one", "rotate")
        fleet.keys("one", "revoke", before)
        reload(one)
        one.wait_for_log("signing key changed")
        assert signer(client, 1) == fleet.id_of("one") != before


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
        until(lambda: client.compile(wasm.adder(1)).header.origin == COMPILED)


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

        assert share() == first
        fleet.keys("one", "generate", "--next")
        assert share() == first
        reload(one)
        assert share() == first
        public = fleet.keys("one", "show", "--next").strip()
        fleet.keys("two", "trust", public)
        assert share() == first
        reload(two)
        assert share() == first
        fleet.keys("one", "activate")
        assert share() == first
        reload(one)
        assert share() == fleet.id_of("one") != first
