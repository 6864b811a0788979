"""Reads a call's request when there is room, checks it against its bounds, and then builds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from wasmkilnd.errors import WasmkilnError, invalid_request
from wasmkilnd.rpc.traffic import Call, Traffic
from wasmkilnd.rpc.wire.bounds import (
    MAX_FIELDS,
    MAX_UNKNOWN_BYTES,
    MAX_UNKNOWN_FIELDS,
    Plan,
    Row,
    plan_of,
)
from wasmkilnd.rpc.wire.parts import Parts, Span
from wasmkilnd.slices import in_slices

# Copying so much takes up to a millisecond.
_LARGE_BYTES = 1024 * 1024
# A request without a module, in most cases. 1,024 with 64 settings each, which is the most that
# fits, take 15 MB; by digest alone they take 1.5 MB.
_SMALL_BYTES = 512
_KEPT_REQUESTS = 1024
# Fields between two pauses: some 0.2 ms.
_STEP = 512
# Wire types.
_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = range(6)
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_TAG = 2**32 - 1


class Requests:
    """Reads the requests of one method.

    What was built of a small request is kept, and given to every call that sends the same bytes:
    no call may change it. Hits of a module by its digest are such calls.
    """

    def __init__(self, method: str, parse: Callable[[bytes], Any], traffic: Traffic) -> None:
        """Raise LookupError if a field of the method's request has no bound."""
        self._parse = parse
        self._traffic = traffic
        self._most_bytes = traffic.most_bytes(method)
        self._plan = plan_of(method)
        self._in_parts = any(row.bound.one_by_one for row in self._plan.values())
        self._small = lru_cache(maxsize=_KEPT_REQUESTS)(self._scanned_and_built)

    async def read(self, call: Call) -> Any:
        """Return a call's request; it counts until the call releases it.

        The request is Parts if its fields are built one by one. Raises COMPILE_QUEUE_FULL,
        QUOTA_EXCEEDED, or INVALID_REQUEST for bytes above a bound or bytes that are no message of
        this method.
        """
        message = await self._traffic.read(call, self._most_bytes) or b""
        if len(message) <= _SMALL_BYTES and not self._in_parts:
            built, cost_bytes = self._small(message)
            self._traffic.hold_more(call, cost_bytes)
            return built
        scanned = await in_slices(scan(message, self._plan))
        self._traffic.hold_more(call, scanned.cost_bytes)
        return Parts(message, scanned.parts) if self._in_parts else await self._built(message)

    def _scanned_and_built(self, message: bytes) -> tuple[Any, int]:
        steps = scan(message, self._plan)
        try:
            next(steps)
        except StopIteration as end:
            return self._parsed(message), end.value.cost_bytes
        raise RuntimeError("a small request has few fields, so its scan has one step")

    async def _built(self, message: bytes) -> Any:
        await _yield_after_copy(message)
        built = self._parsed(message)
        await _yield_after_copy(message)
        return built

    def _parsed(self, message: bytes) -> Any:
        try:
            return self._parse(message)
        except DecodeError:
            raise not_a_message() from None


async def _yield_after_copy(message: bytes) -> None:
    """Let other calls run after a large message was copied, by gRPC, protobuf or Python."""
    if len(message) >= _LARGE_BYTES:
        await asyncio.sleep(0)


@dataclass(slots=True)
class Scanned:
    """The result of a scan."""

    cost_bytes: int = 0
    """What the request will cost in memory once it is built, beside the bytes that arrived."""
    parts: list[Span] = field(default_factory=list, repr=False)
    """Where the parts are that are built one by one."""


def scan(raw: bytes, plan: Plan) -> Generator[None, None, Scanned]:
    """Check ``raw`` against the plan; pause after every few fields.

    Raises INVALID_REQUEST at the first bound that is exceeded, or for bytes that are no message.
    The table bounds the scan's own work too: it steps over strings, and counts fields that
    are not in the plan as unknown.
    """
    try:
        return (yield from _scan(raw, plan))
    except IndexError:  # The bytes end inside a number.
        raise not_a_message() from None


def not_a_message() -> WasmkilnError:
    """Return the error for bytes that are no protobuf message of this method."""
    return invalid_request("cannot parse the request: its bytes are no message of this call", "")


def _scan(raw: bytes, plan: Plan) -> Generator[None, None, Scanned]:
    at, end = 0, len(raw)
    counts: dict[int, int] = {}
    above: list[tuple[int, Plan, dict[int, int]]] = []
    groups: list[int] = []  # The unknown groups that are open in this message.
    fields = unknown = unknown_bytes = 0
    scanned = Scanned()
    while True:
        while at == end:
            if groups:
                raise not_a_message()
            if not above:
                return scanned
            end, plan, counts = above.pop()
        if at > end:
            raise not_a_message()
        fields += 1
        if fields % _STEP == 0:
            if fields > MAX_FIELDS:
                raise _too_many_fields(len(raw))
            yield
        start = at
        tag = raw[at]
        at += 1
        if tag > 0x7F:
            tag, at = _varint(raw, start)
        row = None if groups else plan.get(tag)
        if row is None:
            unknown += 1
            if unknown > MAX_UNKNOWN_FIELDS:
                raise _too_many_unknown()
        else:
            count = counts.get(tag, 0) + 1
            if count > row.bound.times:
                raise _too_many(row, len(raw))
            counts[tag] = count
            scanned.cost_bytes += row.cost_bytes
        kind = tag & 7
        if kind == _LENGTH:
            length = raw[at]
            at += 1
            if length > 0x7F:
                length, at = _varint(raw, at - 1)
            if length > end - at:
                raise not_a_message()
            if row is not None:
                if length > row.bound.length:
                    raise _too_long(row, length)
                if row.bound.one_by_one:
                    scanned.parts.append((at, at + length))
                if row.inner is not None:
                    above.append((end, plan, counts))
                    end, plan, counts = at + length, row.inner, {}
                    continue
                scanned.cost_bytes += row.copies * length
            at += length
        elif kind == _VARINT:
            if raw[at] > 0x7F:
                _, at = _varint(raw, at)
            else:
                at += 1
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        elif kind == _GROUP:
            groups.append(tag >> 3)
        elif kind != _END_GROUP or not groups or groups.pop() != tag >> 3:
            raise not_a_message()
        if tag < 8 or tag > _MAX_TAG:  # No field has the number 0.
            raise not_a_message()
        if row is None:
            unknown_bytes += at - start
            if unknown_bytes > MAX_UNKNOWN_BYTES:
                raise _too_much_unknown(unknown_bytes)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return the number at ``at``, and the position after it."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise not_a_message()


def _too_many(row: Row, size_bytes: int) -> WasmkilnError:
    return invalid_request(
        f"{row.path} may occur {row.bound.times:,} times at most, and occurs more often in this"
        f" request of {size_bytes:,} bytes: send fewer, or several requests",
        row.path,
        at_most=row.bound.times,
    )


def _too_long(row: Row, length: int) -> WasmkilnError:
    return invalid_request(
        f"{row.path} has {length:,} bytes and may have at most {row.bound.length:,}",
        row.path,
        at_most=row.bound.length,
        size_bytes=length,
    )


def _too_many_fields(size_bytes: int) -> WasmkilnError:
    return invalid_request(
        f"the request of {size_bytes:,} bytes has more than {MAX_FIELDS:,} fields in all:"
        " send several requests",
        "",
        at_most=MAX_FIELDS,
    )


def _too_many_unknown() -> WasmkilnError:
    return invalid_request(
        f"the request has more than {MAX_UNKNOWN_FIELDS} fields that this daemon does not know:"
        " use a client of the daemon's version",
        "",
        at_most=MAX_UNKNOWN_FIELDS,
    )


def _too_much_unknown(size_bytes: int) -> WasmkilnError:
    return invalid_request(
        f"the request has {size_bytes:,} bytes or more in fields that this daemon does not know,"
        f" and it ignores at most {MAX_UNKNOWN_BYTES:,}: use a client of the daemon's version",
        "",
        at_most=MAX_UNKNOWN_BYTES,
        size_bytes=size_bytes,
    )
