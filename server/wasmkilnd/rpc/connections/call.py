"""A call under way: who calls, how urgent it is, what it is about, and what it waits for."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any, TypeAlias

from wasmkilnd.account import UNLIMITED, Account
from wasmkilnd.errors import invalid_request, quoted, too_many_connections
from wasmkilnd.model import ANYBODY, PLAINTEXT, Credentials, Entrance, Identity, Transport
from wasmkilnd.network import host_of
from wasmkilnd.rpc.connections import sockets
from wasmkilnd.rpc.connections.sockets import Address

ANONYMOUS = "anonymous"
"""The name of callers without credentials, where the policy lets them in."""
_AUTHORIZATION_KEY = "authorization"
PRIORITY_KEY = "wasmkiln-priority"
_PRIORITIES = {"": False, "interactive": False, "background": True}
_REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[0-9A-Za-z._:/+=-]{1,128}")

Context: TypeAlias = Any  # a grpc.aio.ServicerContext; grpcio ships no types


class Use(IntEnum):
    """How much a connection would lose if it were closed."""

    IDLE = 0
    """It has no call."""
    WAITING = 1
    """Its calls wait for an event, as a watch does, or their requests have not arrived whole."""
    WORKING = 2
    """The daemon works for one of its calls, or sends the answer."""


@dataclass(frozen=True, slots=True)
class UseSince:
    """How a connection is used, and since when."""

    use: Use
    since_s: float
    """By the monotonic clock; 0 for an idle connection that is not remembered any more."""


@dataclass(slots=True, eq=False)
class Call:
    """A call under way, with what its log line tells."""

    context: Context
    entrance: Entrance = PLAINTEXT
    """Where the call came in."""
    identity: Identity = ANYBODY
    """Who makes the call, once the guard has admitted it."""
    account: Account = UNLIMITED
    """Who pays for the call, once it counts as one of theirs."""
    peer: str = field(init=False)
    """gRPC's name of the other end of the connection."""
    caller: str = field(init=False)
    """The name under which the call takes turns with other callers, and counts in each limit."""
    release_request: Callable[[], None] = lambda: None
    """Stops counting the request's bytes. A second call does nothing."""
    use: Use = Use.WAITING
    since_s: float = field(default_factory=time.monotonic)
    module: str = ""
    engine: str = ""
    origin: str = ""
    queue_ms: float | None = None
    compile_ms: float | None = None
    bytes: int | None = None
    about: dict[str, str | int | bool] = field(default_factory=dict)
    """What else its line of the audit tells."""
    audited: bool = False
    """Whether it has its line of the audit."""
    _request_id: str = ""
    _sent: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        self.peer = self.context.peer()
        self.caller = caller_of(self.peer)

    def admitted(self, identity: Identity) -> None:
        """Note who makes the call: an identity with a name counts as one caller.

        In each namespace, since tokens of two tenants may have the same name.
        """
        self.identity = identity
        if identity.name and identity.name != ANONYMOUS:
            self.caller = f"{identity.namespace}/{identity.name}"

    def charge_to(self, account: Account) -> None:
        """Count the call as one of ``account``, until it leaves. Raises QUOTA_EXCEEDED."""
        account.enter()
        self.account = account

    def credentials(self) -> Credentials:
        """Return what the call brings along to say who makes it."""
        certificate = b""
        if self.entrance.transport is Transport.MTLS:
            said = self.context.auth_context()
            # Those between it and its CA too, if the caller sent some.
            certificate = b"".join(
                (*said.get("x509_pem_cert", ()), *said.get("x509_pem_cert_chain", ()))
            )
        # Of two, a proxy may have checked the other one. Together they are no token.
        return Credentials(", ".join(self._all_metadata(_AUTHORIZATION_KEY)), certificate)

    @property
    def request_id(self) -> str:
        """The id that the caller sent with the call if it is well-formed, else a new one."""
        if not self._request_id:
            sent = self._metadata(_REQUEST_ID_KEY)
            self._request_id = sent if _REQUEST_ID.fullmatch(sent) else os.urandom(8).hex()
        return self._request_id

    @property
    def background(self) -> bool:
        """Whether the caller asked to yield to other callers. Raises INVALID_REQUEST."""
        return is_background(self._metadata(PRIORITY_KEY))

    def start_work(self) -> None:
        """Note that the request has arrived, and that the daemon works for it from now on."""
        self.use, self.since_s = Use.WORKING, time.monotonic()

    def metadata(self) -> tuple[Any, ...]:
        """Return the metadata that the caller sent, each a name and a value."""
        if self._sent is None:  # grpcio makes a new tuple each time.
            self._sent = tuple(self.context.invocation_metadata() or ())
        return self._sent

    def _metadata(self, wanted: str) -> str:
        return next(iter(self._all_metadata(wanted)), "")

    def _all_metadata(self, wanted: str) -> list[str]:
        return [value for key, value in self.metadata() if key == wanted and isinstance(value, str)]


class CallsUnderWay:
    """The calls of each connection. For one event loop."""

    def __init__(self, remembered: int) -> None:
        """Remember for ``remembered`` connections when their last call ended."""
        self._remembered = remembered
        self._tasks: dict[Call, asyncio.Task[Any]] = {}
        self._ending: set[Call] = set()
        # Connections that are dropped from here count as idle the longest, which is true of
        # those that are still open.
        self._ended: OrderedDict[str, float] = OrderedDict()

    @contextmanager
    def answering(self, call: Call) -> Iterator[None]:
        """Know that the current task answers ``call``.

        Raises COMPILE_QUEUE_FULL if the call was ended because its connection will be closed.
        """
        task = this_task()
        self._tasks[call] = task
        try:
            yield
        except asyncio.CancelledError:
            if call not in self._ending:
                raise
            task.uncancel()
            raise too_many_connections() from None
        finally:
            del self._tasks[call], task
            self._ending.discard(call)
            self._note_end(call.peer)

    async def use_of(self, peers: Iterable[Address]) -> dict[Address, UseSince]:
        """Return how the connections of ``peers`` are used now."""
        calls = [(call.peer, call.use, call.since_s) for call in self._tasks]
        return await asyncio.to_thread(_use_of, peers, calls, dict(self._ended))

    def end(self, peers: frozenset[Address]) -> None:
        """End the calls of ``peers``, and tell their callers why."""
        for call, task in list(self._tasks.items()):
            if sockets.parse(call.peer) in peers and call not in self._ending:
                self._ending.add(call)
                task.cancel()

    def _note_end(self, peer: str) -> None:
        self._ended[peer] = time.monotonic()
        self._ended.move_to_end(peer)
        if len(self._ended) > self._remembered:
            self._ended.popitem(last=False)


def this_task() -> asyncio.Task[Any]:
    """Return the task that answers a call: the running one."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("calls are answered in tasks")
    return task


@lru_cache(maxsize=4096)  # More than the connections of most daemons; each makes many calls.
def caller_of(peer: str) -> str:
    """Return the caller that a call counts for, from gRPC's name of its peer.

    Another machine is one caller, however many connections it opens: its address, and of
    IPv6 the /64 network that one machine commonly owns. On loopback each connection is a
    caller, since all have the same address there. Unix sockets are one caller together:
    gRPC does not tell them apart.
    """
    kind = peer.partition(":")[0]
    if kind not in ("ipv4", "ipv6"):
        return kind
    try:
        address = sockets.parse(peer)
    except ValueError:
        return peer
    return peer if address is None or address[0].is_loopback else host_of(address[0])


def is_background(priority: str) -> bool:
    """Return whether a priority yields to other callers. Raises INVALID_REQUEST."""
    if priority not in _PRIORITIES:
        raise invalid_request(
            f"the metadata {PRIORITY_KEY} is 'background' or 'interactive', not {quoted(priority)}",
            PRIORITY_KEY,
        )
    return _PRIORITIES[priority]


def _use_of(
    peers: Iterable[Address],
    calls: Iterable[tuple[str, Use, float]],
    ended: Mapping[str, float],
) -> dict[Address, UseSince]:
    idle = {sockets.parse(peer): since_s for peer, since_s in ended.items()}
    found = {peer: UseSince(Use.IDLE, idle.get(peer, 0.0)) for peer in peers}
    for name, use, since_s in calls:
        peer = sockets.parse(name)
        if peer is None or (before := found.get(peer)) is None:
            continue
        # Of several calls the one that would lose most counts, and of equals the last.
        if (use, since_s) > (before.use, before.since_s if before.use else 0.0):
            found[peer] = UseSince(use, since_s)
    return found
