"""What the two clients do differently: they run in an event loop, or in threads.

All else is written once: client.py is generated from aio.py.
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
    """For one event loop."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: Any = None
        self._closed = False

    @property
    def channel(self) -> Any:
        """The connection. Raises RuntimeError once it is closed."""
        if self._closed:
            raise _closed()
        # Made inside the loop that uses it: grpc.aio binds a channel to the loop it finds.
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, CHANNEL_OPTIONS)
        return self._channel

    async def pause(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)

    async def run(self, blocking: Callable[[], T]) -> T:
        """Returns what `blocking` does, which is run in a thread."""
        return await asyncio.to_thread(blocking)

    async def close(self) -> None:
        """Closes the connection and ends calls under way. Can be called twice."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()


class Transport:
    """For many threads at once."""

    def __init__(self, address: str) -> None:
        self._channel: Any = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        self._closed = threading.Event()

    @property
    def channel(self) -> Any:
        """The connection. Raises RuntimeError once it is closed."""
        if self._closed.is_set():
            raise _closed()
        return self._channel

    def pause(self, seconds: float) -> None:
        """Waits, until it is closed at most."""
        self._closed.wait(seconds)

    def run(self, blocking: Callable[[], T]) -> T:
        """Returns what `blocking` does."""
        return blocking()

    def close(self) -> None:
        """Closes the connection and ends calls and pauses under way. Can be called twice."""
        self._closed.set()
        self._channel.close()


def _closed() -> RuntimeError:
    return RuntimeError("this client is closed")
