"""A Redis that fails in each way costs no caller an answer, is told plainly, and is taken back."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from wasmkiln import Client
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.faults.proxy import GOOD, Line, Proxy
from tests.faults.site import KINDS, PASSWORD, Kind, Site, running_site, told

# What a call may take: far more than the time-outs below, far less than waiting for ever.
CALL_S = 60
# The daemon has looked once whether writes succeed again.
LOOK_S = 7
_tags = count(1)
DOWN, REFUSING = (
    [kind for kind in KINDS if kind.detail and kind.takes_reads == reads] for reads in (False, True)
)

# As for the user that 0.6.0 needs: other commands of a write succeed.
REFUSING.append(
    Kind(
        "a user without APPEND",
        told("ACL SETUSER default -append", "ACL SETUSER default +append"),
        detail=r"no permission \(APPEND\)",
        takes_reads=True,
    )
)


@dataclass(frozen=True)
class Kiln:
    """A daemon, and what stands between it and its Redis."""

    site: Site
    daemon: RedisDaemon
    client: Client

    def stored(self) -> bytes:
        """Return a module that Redis has, and its artifact."""
        module = wasm.adder(next(_tags))
        self.client.compile(module)
        settled(self.client)
        return module

    def check_answers(self, known: bytes, artifact: bytes) -> None:
        """Calls are answered: for a new module, one that Redis has or had, and for memory's."""
        assert self.client.compile(wasm.adder(next(_tags))).header.origin == COMPILED
        self.client.evict(all=True, tier="memory")
        assert self.client.compile(known).bytes == artifact
        origin = self.client.compile(wasm.digest(known)).header.origin
        assert origin == types_pb2.ORIGIN_MEMORY
        assert self.client.find_missing([wasm.digest(known)]) == []

    def check_taken_back(self) -> None:
        """The daemon uses its Redis again."""
        eventually(
            lambda: self.client.stats().redis_up and not self.client.stats().redis_detail,
            "it is not taken back",
        )
        assert self.daemon.metric("redis_up") == 1
        module = self.stored()
        self.client.evict(all=True, tier="memory")
        assert self.client.compile(wasm.digest(module)).header.origin == REDIS

    def events(self, begin: int) -> list[str]:
        """Return the events that were logged since there were ``begin`` lines."""
        return [json.loads(line)["event"] for line in self.daemon.log_lines[begin:]]


@pytest.fixture(scope="module")
def kiln(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiln]:
    folder = tmp_path_factory.mktemp("sick")
    state = fresh_state(folder / "state", engines=ONE_ENGINE)
    with running_site(folder / "redis") as site:
        with (
            RedisDaemon(state, environ={"WASMKILN_REDIS_URL": site.url}) as daemon,
            daemon.client(timeout_s=CALL_S) as client,
        ):
            yield Kiln(site, daemon, client)
        assert PASSWORD not in daemon.banner + daemon.log


@pytest.mark.parametrize("kind", DOWN, ids=lambda kind: kind.name)
def test_a_redis_that_serves_nobody(kiln: Kiln, kind: Kind) -> None:
    client = kiln.client
    known = kiln.stored()
    artifact = client.compile(known).bytes
    logged = len(kiln.daemon.log_lines)
    with kind.sick(kiln.site):
        kiln.check_answers(known, artifact)
        eventually(lambda: not client.stats().redis_up, "nobody notices")
        # At first it may be what the cut of a connection looks like.
        eventually(lambda: re.search(kind.detail, client.stats().redis_detail), "what is wrong?")
        assert PASSWORD not in client.stats().redis_detail
        assert kiln.daemon.metric("redis_up") == 0
        kiln.check_answers(known, artifact)
    kiln.check_taken_back()
    events = kiln.events(logged)
    assert "tier is down" in events
    assert events.count("tier is down") == events.count("tier is up again")


@pytest.mark.parametrize("kind", REFUSING, ids=lambda kind: kind.name)
def test_a_redis_that_takes_no_writes_is_read(kiln: Kiln, kind: Kind) -> None:
    client = kiln.client
    known = kiln.stored()
    logged = len(kiln.daemon.log_lines)
    dropped = client.stats().dropped_writes
    failed = kiln.daemon.metric("tier_stores_total", outcome="error", tier="redis")
    with kind.sick(kiln.site):
        assert client.compile(wasm.with_data(40_000, next(_tags))).header.origin == COMPILED
        eventually(lambda: client.stats().dropped_writes > dropped, "no write is dropped")
        eventually(lambda: client.stats().redis_detail, "it is not told")
        stats = client.stats()
        assert re.search(kind.detail, stats.redis_detail), stats.redis_detail
        assert stats.redis_up
        assert kiln.daemon.metric("tier_stores_total", outcome="error", tier="redis") > failed
        client.evict(all=True, tier="memory")
        assert client.compile(wasm.digest(known)).header.origin == REDIS
        time.sleep(LOOK_S)
        assert client.stats().redis_detail, "it is taken back too early"
    # With nothing to write it finds out by itself.
    eventually(lambda: not client.stats().redis_detail, "it is not taken back")
    kiln.check_taken_back()
    events = kiln.events(logged)
    assert events.count("tier takes no writes") == events.count("tier takes writes again") == 1
    assert "tier is down" not in events


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (Line(refuse=True), "cannot reach Redis"),
        (Line(swallow=True), "does not answer in time"),
        (Line(garbage=b"+HELLO\r\n?\r\n"), "Redis"),
    ],
    ids=["refuses", "never answers", "answers garbage"],
)
def test_a_daemon_starts_without_redis_says_so_once_and_takes_it_back(
    kiln: Kiln, tmp_path: Path, line: Line, why: str
) -> None:
    def ready(daemon: RedisDaemon) -> str:
        with urllib.request.urlopen(f"{daemon.admin_url}/readyz") as answer:
            return str(answer.read().decode())

    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    with Proxy(kiln.site.server.socket) as proxy:
        proxy.set(line)
        environ = {
            "WASMKILN_REDIS_URL": Site(kiln.site.server, proxy).url,
            "WASMKILN_REDIS_TIMEOUT_S": "0.3",
        }
        with RedisDaemon(state, environ=environ) as daemon, daemon.client() as client:
            assert "which does not answer yet" in daemon.banner
            modules = [wasm.adder(next(_tags)) for _ in range(20)]
            for module in modules:
                assert client.compile(module).header.origin == COMPILED
            stats = client.stats()
            assert not stats.redis_up
            assert why in stats.redis_detail
            assert stats.pending_writes == 40
            assert client.health() == "SERVING"
            assert ready(daemon).startswith("ready; ")
            assert daemon.log.count('"tier is down"') == 1
            assert '"tier is up again"' not in daemon.log
            proxy.set(GOOD)
            eventually(lambda: client.stats().redis_up, "it is not taken")
            settled(client)
            client.evict(all=True, tier="memory")
            for module in modules:
                assert client.compile(wasm.digest(module)).header.origin == REDIS
            assert ready(daemon) == "ready\n"
            daemon.wait_for_log('"tier is up again"')
            assert daemon.log.count('"tier is down"') == 1
    assert PASSWORD not in daemon.banner + daemon.log
