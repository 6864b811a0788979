"""A Redis that fails in each way costs no caller an answer, is told plainly, and is taken back."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from wasmkiln import Client
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.faults.proxy import GOOD, Line, Proxy
from tests.servers.deployments import KINDS_OF_REDIS, Deployment
from tests.servers.lying_server import LIES
from tests.servers.redis_server import RedisServer, binary_of, free_ports, redis_server
from tests.servers.rest_service import RestService

PASSWORD = "hunter2"
# What a call may take: far more than the time-outs below, far less than waiting for ever.
CALL_S = 60
_tags = count(1)


class Server:
    """A Valkey that asks for a password and can be started again, empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.socket = folder / "server.sock"
        self.start()

    def start(self) -> None:
        self.running: RedisServer = self._stack.enter_context(
            redis_server(binary_of("valkey"), self._folder, ["--requirepass", PASSWORD])
        )

    def admin(self) -> redis.Redis:
        """Return an operator's client; the caller closes it."""
        return redis.Redis(unix_socket_path=str(self.socket), password=PASSWORD, socket_timeout=30)

    def close(self) -> None:
        self._stack.close()


@dataclass(frozen=True)
class Site:
    """A daemon, and what stands between it and its Redis."""

    folder: Path
    server: Server
    proxy: Proxy
    daemon: RedisDaemon
    client: Client


Sickness = Callable[[Site], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("sick")
    with ExitStack() as stack:
        server = Server(folder / "redis")
        stack.callback(server.close)
        proxy = stack.enter_context(Proxy(server.socket))
        environ = {
            "WASMKILN_REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:{proxy.port}",
            "WASMKILN_WORKERS": "1",
        }
        state = fresh_state(folder / "state", engines=ONE_ENGINE)
        daemon = stack.enter_context(RedisDaemon(state, environ=environ))
        client = stack.enter_context(daemon.client(timeout_s=CALL_S))
        yield Site(folder, server, proxy, daemon, client)
        told = daemon.banner + daemon.log
        assert PASSWORD not in told


@contextmanager
def hung(site: Site) -> Iterator[None]:
    site.server.running.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        site.server.running.process.send_signal(signal.SIGCONT)


@contextmanager
def restarted_empty(site: Site) -> Iterator[None]:
    site.server.running.process.kill()
    site.server.running.process.wait()
    yield
    site.server.start()


@contextmanager
def other_password(site: Site) -> Iterator[None]:
    configure(site, "requirepass", "another")
    yield
    with redis.Redis(unix_socket_path=str(site.server.socket), password="another") as admin:
        admin.config_set("requirepass", PASSWORD)
        drop_clients(admin)


@contextmanager
def full(site: Site) -> Iterator[None]:
    configure(site, "maxmemory-policy", "noeviction")
    configure(site, "maxmemory", "1mb")
    yield
    configure(site, "maxmemory", "0")


@contextmanager
def read_only(site: Site) -> Iterator[None]:
    """It was made the replica of another server, which cannot be reached."""
    [port] = free_ports(1)
    with site.server.admin() as admin:
        admin.replicaof("127.0.0.1", str(port))
        yield
        admin.replicaof("NO", "ONE")


@contextmanager
def without_rights(site: Site) -> Iterator[None]:
    rights(site, "-@write")
    yield
    rights(site, "+@all")


def line(bad: Line) -> Sickness:
    """Return a sickness of the line to Redis."""

    @contextmanager
    def sick(site: Site) -> Iterator[None]:
        site.proxy.set(bad)
        site.proxy.cut()
        try:
            yield
        finally:
            site.proxy.set(GOOD)

    return sick


def configure(site: Site, name: str, value: str) -> None:
    with site.server.admin() as admin:
        admin.config_set(name, value)
        if name == "requirepass":
            drop_clients(admin)


def rights(site: Site, rule: str) -> None:
    with site.server.admin() as admin:
        told: Any = admin.execute_command
        told("ACL", "SETUSER", "default", rule)


def drop_clients(admin: redis.Redis) -> None:
    """End the connections of everybody else."""
    kill: Any = admin.execute_command
    kill("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


DOWN: dict[str, tuple[Sickness, str]] = {
    "hung": (hung, "does not answer in time"),
    "killed, restarted empty": (restarted_empty, "cannot reach Redis|closed"),
    "another password": (other_password, "Redis refuses the user or password"),
    "accepts and never answers": (line(Line(swallow=True)), "does not answer in time"),
    "refuses connections": (line(Line(refuse=True)), "cannot reach Redis"),
    # No more than a megabyte of each at a time: what a reader does with more is its own affair.
    **{
        f"answers {lie}": (line(Line(garbage=(begin + on)[: 1 << 20])), ".")
        for lie, (begin, on) in LIES.items()
        if lie in ("a length that is no number", "a line without end", "nothing but bytes")
    },
    "answers HTTP": (line(Line(garbage=b"HTTP/1.1 400 Bad Request\r\n\r\n")), "."),
}
REFUSING: dict[str, tuple[Sickness, str]] = {
    "full": (full, "maxmemory"),
    "read-only": (read_only, "read.?only"),
}


def stored(site: Site) -> bytes:
    """Return a module that Redis has, and its artifact."""
    module = wasm.adder(next(_tags))
    site.client.compile(module)
    settled(site.client)
    return module


def check_taken_back(site: Site) -> None:
    """The daemon uses its Redis again."""
    eventually(
        lambda: site.client.stats().redis_up and not site.client.stats().redis_detail,
        "it is not taken back",
    )
    assert site.daemon.metric("redis_up") == 1
    module = stored(site)
    site.client.evict(everything=True, tier="memory")
    assert site.client.compile(wasm.digest(module)).header.origin == REDIS


def check_answers(site: Site, known: bytes, artifact: bytes) -> None:
    """Calls are answered: for a new module, for one that Redis has or had, and for its memory."""
    assert site.client.compile(wasm.adder(next(_tags))).header.origin == COMPILED
    site.client.evict(everything=True, tier="memory")
    assert site.client.compile(known).bytes == artifact
    assert site.client.compile(wasm.digest(known)).header.origin == types_pb2.ORIGIN_MEMORY
    assert [key.module_sha256 for key in site.client.find_missing([wasm.digest(known)])] == []


@pytest.mark.parametrize("how", DOWN)
def test_a_redis_that_serves_nobody(site: Site, how: str) -> None:
    sickness, detail = DOWN[how]
    known = stored(site)
    artifact = site.client.compile(known).bytes
    logged = len(site.daemon.log_lines)
    with sickness(site):
        check_answers(site, known, artifact)
        eventually(lambda: not site.client.stats().redis_up, "nobody notices")
        # At first it may be what the cut of a connection looks like.
        eventually(lambda: re.search(detail, site.client.stats().redis_detail), "what is wrong?")
        assert PASSWORD not in site.client.stats().redis_detail
        assert site.daemon.metric("redis_up") == 0
        check_answers(site, known, artifact)
    check_taken_back(site)
    events = [json.loads(line)["event"] for line in site.daemon.log_lines[logged:]]
    assert "tier is down" in events
    assert events.count("tier is down") == events.count("tier is up again")


@pytest.mark.parametrize("how", REFUSING)
def test_a_redis_that_takes_no_writes_is_read(site: Site, how: str) -> None:
    sickness, detail = REFUSING[how]
    known = stored(site)
    logged = len(site.daemon.log_lines)
    dropped = site.client.stats().dropped_writes
    with sickness(site):
        assert site.client.compile(wasm.with_data(40_000, next(_tags))).header.origin == COMPILED
        eventually(lambda: site.client.stats().dropped_writes > dropped, "no write is dropped")
        eventually(lambda: site.client.stats().redis_detail, "it is not told")
        stats = site.client.stats()
        assert re.search(detail, stats.redis_detail), stats.redis_detail
        assert stats.redis_up
        site.client.evict(everything=True, tier="memory")
        assert site.client.compile(wasm.digest(known)).header.origin == REDIS
    # With nothing to write it finds out by itself.
    eventually(lambda: not site.client.stats().redis_detail, "it is not taken back")
    check_taken_back(site)
    events = [json.loads(line)["event"] for line in site.daemon.log_lines[logged:]]
    assert events.count("tier takes no writes") == events.count("tier takes writes again") == 1
    assert "tier is down" not in events


def test_a_user_who_may_not_write_costs_no_call(site: Site) -> None:
    known = stored(site)
    artifact = site.client.compile(known).bytes
    with without_rights(site):
        check_answers(site, known, artifact)
        settled(site.client)
        eventually(lambda: site.client.stats().redis_detail, "it is not told")
        check_answers(site, known, artifact)
    check_taken_back(site)


def test_a_new_password_in_its_file_is_taken(
    site: Site, engines: Installed, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("an-old-one")
    environ = {
        "WASMKILN_REDIS_URL": f"unix://{site.server.socket}",
        "WASMKILN_REDIS_PASSWORD_FILE": str(file),
    }
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    with RedisDaemon(state, environ=environ) as daemon, daemon.client() as client:
        assert client.compile(wasm.adder(next(_tags))).header.origin == COMPILED
        assert client.stats().redis_detail == "Redis refuses the user or password"
        file.write_text(f"{PASSWORD}\n")
        eventually(lambda: client.stats().redis_up, "the new password is not tried")
        assert not client.stats().redis_detail
    assert "an-old-one" not in daemon.banner + daemon.log
    assert PASSWORD not in daemon.banner + daemon.log


@pytest.fixture(scope="module")
def rest(
    engines: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, RedisDaemon]]:
    folder = tmp_path_factory.mktemp("rest")
    state = fresh_state(folder / "state", engines=ONE_ENGINE)
    with (
        KINDS_OF_REDIS["rest"](folder / "redis") as running,
        RedisDaemon(state, environ=running.environment) as daemon,
    ):
        yield running, daemon
        assert running.access.password not in daemon.banner + daemon.log


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (401, "Redis refuses the user or password"),
        (302, "HTTP status 302"),
        (429, "HTTP status 429"),
        (503, "HTTP status 503"),
        (200, "does not speak the Redis protocol"),
    ],
)
def test_a_rest_service_that_serves_nobody(
    rest: tuple[Deployment, RedisDaemon], status: int, detail: str
) -> None:
    running, daemon = rest
    service = running.parts
    assert isinstance(service, RestService)
    with daemon.client(timeout_s=CALL_S) as client:
        try:
            service.refuse_with = status
            assert client.compile(wasm.adder(next(_tags))).header.origin == COMPILED
            eventually(lambda: not client.stats().redis_up, "nobody notices")
            assert detail in client.stats().redis_detail
            assert client.compile(wasm.adder(next(_tags))).header.origin == COMPILED
        finally:
            service.refuse_with = 0
        eventually(lambda: client.stats().redis_up, "it is not taken back")
        digest = client.compile(wasm.adder(next(_tags))).header.module_sha256
        settled(client)
        client.evict(everything=True, tier="memory")
        assert client.compile(digest).header.origin == REDIS
