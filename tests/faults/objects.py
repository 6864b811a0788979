"""An object store and the line to it, and each of their faults; and a store that lies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wasmkiln.v1 import types_pb2

from tests.e2e.stored_values import flipped
from tests.faults.proxy import Line, Proxy
from tests.faults.site import OF_ANY_LINE, TIMEOUT_S, Kind, Sickness, Tier, killed, line, stopped
from tests.servers.object_stores import KINDS_OF_OBJECT_STORES, ObjectStore, Process

_chance = random.Random(3)
Values = Mapping[str, bytes]
# Each of the load's warm modules, and an artifact of it.
_LARGEST = 14


@dataclass(frozen=True)
class ObjectSite:
    """A store that daemons without a Redis reach through a proxy."""

    store: ObjectStore
    proxy: Proxy

    @property
    def server(self) -> Process:
        """Its process."""
        assert self.store.process
        return self.store.process

    @property
    def environment(self) -> dict[str, str]:
        """What daemons are told, as variables."""
        return {
            **self.store.behind(self.proxy.port),
            "WASMKILN_OBJECT_STORE_TIMEOUT_S": str(TIMEOUT_S),
            "WASMKILN_REDIS_URL": "none",
        }


@contextmanager
def _running(folder: Path) -> Iterator[ObjectSite]:
    with (
        KINDS_OF_OBJECT_STORES["seaweedfs"](folder) as store,
        Proxy(store.port) as proxy,
    ):
        yield ObjectSite(store, proxy)


def answers(*statuses: str, only_to: bytes = b"") -> Sickness:
    """Return a fault: somebody on the way answers requests so."""
    body = b"<Error><Code>SlowDown</Code></Error>"
    head = f"Content-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"

    def choose() -> Line:
        answer = f"HTTP/1.1 {_chance.choice(statuses)}\r\n{head}\r\n\r\n".encode() + body
        return Line(garbage=answer, only_to=only_to)

    return line(choose)


def _lies(made_of: Callable[[Values], Values]) -> Sickness:
    """Return a fault: somebody who can write to the store changes what is there, twice.

    It has what ``made_of`` makes of that, and lacks the rest.
    """

    def lie(site: ObjectSite) -> None:
        there = _asked_for(site)
        changed = made_of(there)
        site.store.put(changed)
        site.store.delete(*(there.keys() - changed.keys()))

    @contextmanager
    def lying(site: ObjectSite) -> Iterator[None]:
        lie(site)
        yield
        lie(site)

    return lying


def _asked_for(site: ObjectSite) -> Values:
    """Return the largest values: those that the load asks for again."""
    return site.store.values(largest=_LARGEST)


def _altered(values: Values) -> Values:
    return {n: flipped(v, _chance.randrange(len(v))) for n, v in values.items()}


def _cut(values: Values) -> Values:
    return {n: v[: _chance.randrange(len(v))] for n, v in values.items()}


def _swapped(values: Values) -> Values:
    names = list(values)
    return dict(zip(names[1:] + names[:1], values.values(), strict=True))


@contextmanager
def _replayed(site: ObjectSite) -> Iterator[None]:
    """Somebody kept copies of what an operator deletes, and puts them back."""
    kept = _asked_for(site)
    site.store.delete(*kept)
    yield
    site.store.put(kept)


OBJECTS = Tier(
    "objects",
    _running,
    (
        Kind("killed with SIGKILL, restarted", killed),
        Kind("stopped with SIGSTOP, continued", stopped, 3 * TIMEOUT_S),
        Kind("accepts and never answers", line(lambda: Line(swallow=True)), 3 * TIMEOUT_S),
        Kind("the same for 12 s", line(lambda: Line(swallow=True)), 12.0, takes_long=True),
        Kind("refuses connections", line(lambda: Line(refuse=True))),
        Kind("refuses the credentials, 403", answers("403 Forbidden", "401 Unauthorized")),
        Kind(
            "answers 500, 503 or 429",
            answers("500 Internal Server Error", "503 Slow Down", "429 Too Many Requests"),
        ),
        Kind(
            "full: answers writes with 507 or 500",
            answers("507 Insufficient Storage", "500 Internal Server Error", only_to=b"PUT "),
            takes_reads=True,
        ),
        Kind("answers garbage", line(lambda: Line(garbage=_chance.randbytes(200)))),
        Kind(
            "each piece of an answer late",
            line(lambda: Line(delay_s=TIMEOUT_S * _chance.uniform(0.1, 0.9))),
            1.5,
        ),
        Kind("answers later than the time-out", line(lambda: Line(delay_s=3 * TIMEOUT_S)), 1.0),
        *OF_ANY_LINE,
        Kind("all deleted", _lies(lambda _: {})),
        Kind("all altered in one bit", _lies(_altered)),
        Kind("all cut short", _lies(_cut)),
        Kind("all under each other's names", _lies(_swapped)),
        Kind("deleted, and put back", _replayed),
    ),
    types_pb2.ORIGIN_OBJECT_STORE,
    lambda stats: stats.object_store_up and not stats.object_store_detail,
)
