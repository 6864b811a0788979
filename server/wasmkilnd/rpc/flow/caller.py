"""Who calls, how urgent it is, and what a call turns out to be about."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from wasmkilnd.errors import invalid_request, quoted
from wasmkilnd.model import Artifact
from wasmkilnd.network import address_of, host_of

PRIORITY_KEY = "wasmkiln-priority"
_PRIORITIES = {"": False, "interactive": False, "background": True}
_REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[0-9A-Za-z._:/+=-]{1,128}")

Context: TypeAlias = Any  # a grpc.aio.ServicerContext; grpcio ships no types


@dataclass(slots=True)
class CallNote:
    """What a call turned out to be about, for its log line, and on what terms it is served."""

    context: Context
    caller: str = ""
    """Whose turn it takes."""
    release: Callable[[], None] = lambda: None
    """To be called when the request's bytes are not held any more; again does nothing."""
    module: str = ""
    engine: str = ""
    origin: str = ""
    queue_ms: float | None = None
    compile_ms: float | None = None
    bytes: int | None = None
    _request_id: str = ""

    @property
    def request_id(self) -> str:
        """The caller's own id for the call if it sent a sensible one, else a new one."""
        if not self._request_id:
            sent = _metadata(self.context, _REQUEST_ID_KEY)
            self._request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex[:16]
        return self._request_id

    @property
    def background(self) -> bool:
        """Whether the caller asked to yield to others. Raises INVALID_REQUEST."""
        return is_background(_metadata(self.context, PRIORITY_KEY))


@dataclass(frozen=True, slots=True)
class Frames:
    """An answer that is serialized already: a header, and perhaps an artifact."""

    header: bytes
    artifact: Artifact | None = None


def caller_of(peer: str) -> str:
    """Return whose turn a call takes, from gRPC's name of its peer.

    Another machine is one caller, however many connections it opens: its address,
    and of IPv6 the network of 64 bits that one machine commonly owns. On loopback
    each connection is one, since every caller has the same address there. All that
    comes by Unix sockets is one caller: gRPC does not tell them apart.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = unquote(rest).rpartition(":")[0].strip("[]")
    try:
        address = address_of(host)
    except ValueError:
        return peer
    return peer if address.is_loopback else host_of(address)


def is_background(priority: str) -> bool:
    """Return whether a call asked to yield to others. Raises INVALID_REQUEST."""
    if priority not in _PRIORITIES:
        raise invalid_request(
            f"the metadata {PRIORITY_KEY} is 'background' or 'interactive', not {quoted(priority)}",
            PRIORITY_KEY,
        )
    return _PRIORITIES[priority]


def _metadata(context: Context, wanted: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == wanted and isinstance(value, str):
            return value
    return ""
