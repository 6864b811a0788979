"""A Redis and the line to it, and each of their faults: how it begins, and how it ends."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from wasmkiln.v1 import types_pb2

from tests.faults.proxy import GOOD, Line, Proxy
from tests.servers.redis_server import RedisServer, binary_of, redis_server

PASSWORD = "hunter2"
TIMEOUT_S = 0.5
"""The time-out of daemons, where faults are measured."""


class Server:
    """A Valkey that can be killed and started again with what it had stored."""

    def __init__(self, folder: Path, settings: Sequence[str] = ()) -> None:
        self._folder = folder
        self._settings = ["--requirepass", PASSWORD, "--appendonly", "yes", *settings]
        self._stack = ExitStack()
        self._running: RedisServer | None = None
        self.start()

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._folder / "server.sock"

    def admin(self) -> redis.Redis:
        """Return an operator's client; the caller closes it."""
        return redis.Redis(unix_socket_path=str(self.socket), password=PASSWORD, socket_timeout=30)

    def start(self) -> None:
        """Start it, for the first time or again."""
        self._running = self._stack.enter_context(
            redis_server(binary_of("valkey"), self._folder, self._settings)
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process."""
        assert self._running
        self._running.process.send_signal(number)
        if number is signal.SIGKILL:
            self._running.process.wait()

    def close(self) -> None:
        """End it, whatever its state."""
        self._stack.close()


@dataclass(frozen=True)
class Site:
    """A Redis that daemons reach through a proxy."""

    server: Server
    proxy: Proxy

    @property
    def url(self) -> str:
        """What daemons are told."""
        return f"redis://:{PASSWORD}@127.0.0.1:{self.proxy.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What daemons are told, as variables."""
        return {"WASMKILN_REDIS_URL": self.url, "WASMKILN_REDIS_TIMEOUT_S": str(TIMEOUT_S)}


@contextmanager
def running_site(folder: Path, settings: Sequence[str] = ()) -> Iterator[Site]:
    """Start a Redis and a proxy, which end with the context."""
    with contextlib.closing(Server(folder, settings)) as server, Proxy(server.socket) as proxy:
        yield Site(server, proxy)


Sickness = Callable[[Any], AbstractContextManager[None]]
"""Has a site be sick for as long as the context lasts."""


@dataclass(frozen=True)
class Kind:
    """One fault. It lasts as long as the context."""

    name: str
    sick: Sickness
    lasts_s: float = 0.8
    detail: str = ""
    """A pattern of what Stats says of a Redis with this fault, if it takes no call or no write."""
    takes_reads: bool = False
    """Redis still answers reads, and only refuses writes."""
    takes_long: bool = False
    """Only the command causes it, and not the tests."""


@dataclass(frozen=True)
class Tier:
    """A tier whose faults are measured."""

    name: str
    running: Callable[[Path], AbstractContextManager[Any]]
    """Starts a site, which has the ``environment`` of daemons."""
    kinds: Sequence[Kind]
    origin: int
    """What answers say that came from it."""
    is_well: Callable[[Any], bool]
    """Whether Stats say nothing against it."""


@contextmanager
def killed(site: Any) -> Iterator[None]:
    """SIGKILL; then started again with what it had stored."""
    site.server.signal(signal.SIGKILL)
    yield
    site.server.start()


@contextmanager
def stopped(site: Any) -> Iterator[None]:
    """SIGSTOP: connections stay, and nobody answers."""
    site.server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        site.server.signal(signal.SIGCONT)


def told(begin: str, end: str) -> Sickness:
    """Return a fault that commands of an operator, a line each, begin and end."""

    @contextmanager
    def sick(site: Site) -> Iterator[None]:
        with site.server.admin() as admin:
            run: Any = admin.execute_command
            for commands in (begin, end):
                for command in commands.splitlines():
                    run(*command.split())
                if commands is begin:
                    yield

    return sick


def line(choose: Callable[[], Line], *, cut: bool = False) -> Sickness:
    """Return a fault of the line; ``choose`` picks the line each time, ``cut`` ends connections."""

    @contextmanager
    def bad(site: Any) -> Iterator[None]:
        site.proxy.set(choose())
        if cut:
            site.proxy.cut()
        try:
            yield
        finally:
            site.proxy.set(GOOD)

    return bad


_chance = random.Random(2)
_GARBAGE = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    b":7\r\n",
    b"$-1\r\n+OK\r\n:1\r\n",
    b"*3\r\n+OK\r\n",
    b"$9999999999\r\n",
    b"+OK\r\n" * 100,
    b"\x00\xff\x16\x03\x01",
)
_DROP = "\nCLIENT KILL TYPE normal SKIPME yes"
_HANGS = "does not answer in time"

OF_ANY_LINE = (
    Kind("a thin line, 200 KB/s", line(lambda: Line(bytes_per_s=200_000)), 1.5),
    Kind(
        "connections cut midway",
        line(lambda: Line(cut_after_bytes=_chance.randrange(1, 300_000)), cut=True),
    ),
    Kind(
        "bytes flipped on the line",
        line(lambda: Line(flip_one_in=_chance.choice((500, 20_000, 200_000)))),
    ),
)
"""Faults of the line to whatever tier."""

KINDS = (
    Kind("killed with SIGKILL, restarted", killed, detail="cannot reach Redis|closed"),
    Kind("stopped with SIGSTOP, continued", stopped, 3 * TIMEOUT_S, _HANGS),
    # What is written may take up to 10 s, if a socket takes the bytes at all.
    Kind("the same for 12 s", stopped, 12.0, takes_long=True),
    Kind(
        "out of memory, noeviction",
        told(
            "CONFIG SET maxmemory-policy noeviction\nCONFIG SET maxmemory 1mb",
            "CONFIG SET maxmemory 0",
        ),
        detail="maxmemory",
        takes_reads=True,
    ),
    Kind(
        "read-only replica after failover",
        told("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        detail="read.?only",
        takes_reads=True,
    ),
    Kind(
        "password changed",
        told(f"CONFIG SET requirepass another{_DROP}", f"CONFIG SET requirepass {PASSWORD}{_DROP}"),
        detail="Redis refuses the user or password",
    ),
    Kind("accepts and never answers", line(lambda: Line(swallow=True)), 3 * TIMEOUT_S, _HANGS),
    Kind("refuses connections", line(lambda: Line(refuse=True)), detail="cannot reach Redis"),
    Kind(
        "answers garbage",
        line(lambda: Line(garbage=_chance.choice([*_GARBAGE, _chance.randbytes(200)]))),
        detail=".",
    ),
    Kind(
        "answers late, within the time-out",
        line(lambda: Line(delay_s=TIMEOUT_S * _chance.uniform(0.3, 0.9))),
        1.5,
    ),
    Kind("answers later than that", line(lambda: Line(delay_s=3 * TIMEOUT_S)), 1.0),
    *OF_ANY_LINE,
)

REDIS = Tier(
    "redis",
    running_site,
    KINDS,
    types_pb2.ORIGIN_REDIS,
    lambda stats: stats.redis_up and not stats.redis_detail,
)
