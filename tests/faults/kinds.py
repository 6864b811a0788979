"""The faults of a Redis, or of the connection to it: how each begins, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from wasmkilnd.cache.redis_servers import WRITE_TIMEOUT_S

from tests.faults.proxy import GOOD, Line
from tests.faults.site import PASSWORD, TIMEOUT_S, Site
from tests.servers.redis_server import binary_of, free_ports, redis_server

Sickness = Callable[[Site], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Kind:
    """One fault. It lasts as long as the context."""

    name: str
    sick: Sickness
    by_proxy: bool
    lasts_s: float
    takes_reads: bool = False
    """Redis still answers reads, and only refuses writes."""
    takes_long: bool = False
    """Only the command causes it, and not the tests."""


@asynccontextmanager
async def killed(site: Site) -> AsyncIterator[None]:
    """SIGKILL; then started again with what it had stored."""
    site.server.signal(signal.SIGKILL)
    yield
    await asyncio.to_thread(site.server.start)


@asynccontextmanager
async def stopped(site: Site) -> AsyncIterator[None]:
    """SIGSTOP: connections stay, and nobody answers."""
    site.server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        site.server.signal(signal.SIGCONT)


@asynccontextmanager
async def full(site: Site) -> AsyncIterator[None]:
    """No memory left, and nothing may be evicted."""
    configure(site, "maxmemory-policy", "noeviction")
    configure(site, "maxmemory", "1mb")
    yield
    configure(site, "maxmemory", "0")


@asynccontextmanager
async def demoted(site: Site) -> AsyncIterator[None]:
    """A failover made it the replica of another, empty server: it is read-only, and soon empty."""
    [port] = free_ports(1)
    settings = ["--port", str(port), "--requirepass", PASSWORD]
    folder = site.folder / f"primary-{port}"
    with redis_server(binary_of("valkey"), folder, settings):
        configure(site, "masterauth", PASSWORD)
        site.admin.replicaof("127.0.0.1", str(port))
        yield
        site.admin.replicaof("NO", "ONE")


@asynccontextmanager
async def other_password(site: Site) -> AsyncIterator[None]:
    """The password is changed, and clients have to connect again."""
    configure(site, "requirepass", "another")
    drop_clients(site)
    yield
    configure(site, "requirepass", PASSWORD)
    drop_clients(site)


def line(choose: Callable[[], Line], *, cut: bool = False) -> Sickness:
    """Return a fault of the line; ``choose`` picks the line each time, ``cut`` ends connections."""

    @asynccontextmanager
    async def bad(site: Site) -> AsyncIterator[None]:
        assert site.proxy
        await asyncio.to_thread(site.proxy.set, choose())
        if cut:
            await asyncio.to_thread(site.proxy.cut)
        try:
            yield
        finally:
            await asyncio.to_thread(site.proxy.set, GOOD)

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


def garbage() -> Line:
    """Return bytes that are no valid reply."""
    return Line(garbage=_chance.choice([*_GARBAGE, _chance.randbytes(200)]))


KINDS = (
    Kind("killed with SIGKILL, restarted", killed, False, 0.8),
    Kind("stopped with SIGSTOP, continued", stopped, False, 3 * TIMEOUT_S),
    # What is written may take up to 10 s, if a socket takes the bytes at all.
    Kind("the same for 12 s", stopped, False, WRITE_TIMEOUT_S + 2, takes_long=True),
    Kind("out of memory, noeviction", full, False, 0.8, takes_reads=True),
    Kind("read-only replica after failover", demoted, False, 0.8, takes_reads=True),
    Kind("password changed", other_password, False, 0.8),
    Kind("accepts and never answers", line(lambda: Line(swallow=True)), True, 3 * TIMEOUT_S),
    Kind("refuses connections", line(lambda: Line(refuse=True)), True, 0.6),
    Kind("answers garbage", line(garbage), True, 0.6),
    Kind(
        "answers late, within the time-out",
        line(lambda: Line(delay_s=TIMEOUT_S * _chance.uniform(0.3, 0.9))),
        True,
        1.5,
    ),
    Kind("answers later than that", line(lambda: Line(delay_s=3 * TIMEOUT_S)), True, 1.0),
    Kind("a thin line, 200 KB/s", line(lambda: Line(bytes_per_s=200_000)), True, 1.5),
    Kind(
        "connections cut midway",
        line(lambda: Line(cut_after_bytes=_chance.randrange(1, 300_000)), cut=True),
        True,
        0.6,
    ),
    Kind(
        "bytes flipped on the line",
        line(lambda: Line(flip_one_in=_chance.choice((500, 20_000, 200_000)))),
        True,
        0.8,
    ),
)


def configure(site: Site, name: str, value: str) -> None:
    """Change a setting of the running Redis."""
    site.admin.config_set(name, value)


def drop_clients(site: Site) -> None:
    """End the connections of everybody but the operator."""
    with contextlib.suppress(Exception):
        kill: Any = site.admin.execute_command
        kill("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
