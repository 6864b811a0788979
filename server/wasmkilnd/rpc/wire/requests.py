"""A call's request: read when there is room for it, held to its bounds, and only then built."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from wasmkilnd.rpc.flow.receive import Receiver
from wasmkilnd.rpc.wire.bounds import plan_of
from wasmkilnd.rpc.wire.parts import Parts
from wasmkilnd.rpc.wire.scan import not_a_message, scan
from wasmkilnd.slices import in_slices

# To copy so much takes up to a millisecond.
_LARGE_BYTES = 1024 * 1024


class Requests:
    """Reads the requests of one method."""

    def __init__(self, method: str, parse: Callable[[bytes], Message], receiver: Receiver) -> None:
        """Raises LookupError where a field of the method's request has no bound."""
        self._parse = parse
        self._receiver = receiver
        self._plan = plan_of(method)
        self._in_parts = any(row.bound.one_by_one for row in self._plan.values())

    async def read(self, context: Any, caller: str) -> tuple[Message | Parts, Callable[[], None]]:
        """Return a call's request, and what lets go of the memory that it is counted with.

        It is Parts where the table of bounds has such. Raises COMPILE_QUEUE_FULL, or
        INVALID_REQUEST for what is above a bound or no message of this method.
        """
        message, release_bytes = await self._receiver.read(context, caller)
        holds = [release_bytes]

        def release() -> None:
            for release_one in holds:
                release_one()

        message = message or b""
        try:
            scanned = await in_slices(scan(message, self._plan))
            holds.append(self._receiver.hold(caller, scanned.cost_bytes))
            built = Parts(message, scanned.parts) if self._in_parts else await self._built(message)
        except BaseException:
            release()
            raise
        return built, release

    async def _built(self, message: bytes) -> Message:
        await _others_first(message)
        try:
            built = self._parse(message)
        except DecodeError:
            raise not_a_message() from None
        await _others_first(message)
        return built


async def _others_first(message: bytes) -> None:
    """Give way after a large message was copied: gRPC copies it, protobuf, and who asks it."""
    if len(message) >= _LARGE_BYTES:
        await asyncio.sleep(0)
