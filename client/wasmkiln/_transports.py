"""The two transports: gRPC in one event loop, and gRPC for many threads.

They are all that differs between the clients; client.py is generated from aio.py.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from wasmkiln._settings import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class AsyncTransport:
    """A connection for one event loop."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: Any = None
        self._closed = False

    @property
    def channel(self) -> Any:
        """The gRPC channel. Raise RuntimeError once the client is closed."""
        if self._closed:
            raise _closed()
        # Not before the first call: grpc.aio binds a channel to the loop that runs now.
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, CHANNEL_OPTIONS)
        return self._channel

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def run(self, blocking: Callable[[], T]) -> T:
        """Run `blocking` in a thread and return its result."""
        return await asyncio.to_thread(blocking)

    async def close(self) -> None:
        """Close the connection and end running calls. May be called twice."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()


class Transport:
    """A connection for many threads at once."""

    def __init__(self, address: str) -> None:
        self._channel: Any = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        self._closed = threading.Event()

    @property
    def channel(self) -> Any:
        """The gRPC channel. Raise RuntimeError once the client is closed."""
        if self._closed.is_set():
            raise _closed()
        return self._channel

    def pause(self, seconds: float) -> None:
        """Wait, but end early when the client is closed."""
        self._closed.wait(seconds)

    def run(self, blocking: Callable[[], T]) -> T:
        """Run `blocking` and return its result."""
        return blocking()

    def close(self) -> None:
        """Close the connection and end running calls and pauses. May be called twice."""
        self._closed.set()
        self._channel.close()


def _closed() -> RuntimeError:
    return RuntimeError("this client is closed")
