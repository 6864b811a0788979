"""The two transports: gRPC in one event loop, and gRPC for many threads.

They are all that differs between the clients; client.py is generated from aio.py.

A transport opens a new channel when a file of its TLS has changed. Calls that run over the one
before end there, and the last of them closes it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from wasmkiln.access import Access
    from wasmkiln.access.files import Stamp

T = TypeVar("T")

_log = logging.getLogger("wasmkiln")


@dataclass
class _Channel:
    """A gRPC channel, and how many calls use it."""

    grpc: Any
    calls: int = 0


class _Opener:
    """Opens channels of one kind, and says when a new one is due."""

    def __init__(self, access: Access, plain: Callable[..., Any], secure: Callable[..., Any]):
        self._access = access
        self._plain, self._secure = plain, secure
        self._stamps: tuple[Stamp, ...] = ()
        self._credentials: Any = None
        if access.tls is not None:
            self._stamps, self._credentials = access.tls.stamps(), access.tls.credentials()

    def open(self) -> Any:
        """Return a new gRPC channel."""
        address, options = self._access.target(), self._access.options()
        if self._credentials is None:
            return self._plain(address, options)
        return self._secure(address, self._credentials, options)

    def is_due(self) -> bool:
        """Return whether a file has changed and can be used, since the last time that this was so.

        While the files cannot be used, for example because only one of two is new, the last ones
        stay in force.
        """
        tls = self._access.tls
        if tls is None:
            return False
        try:
            stamps = tls.stamps()
            if stamps == self._stamps:
                return False
            # First, so that files which change meanwhile are read once more.
            self._stamps = stamps
            self._credentials = tls.credentials()
        except (OSError, ValueError) as why:
            _log.debug("the last files for TLS are used on: %s", why)
            return False
        return True


class AsyncTransport:
    """A connection for one event loop. `async with` it to make a call."""

    def __init__(self, access: Access) -> None:
        self._opener = _Opener(access, grpc.aio.insecure_channel, grpc.aio.secure_channel)
        self.credentials = access.metadata
        self._open: list[_Channel] = []  # the last one is for new calls
        self._closed = False

    def calling(self) -> _AsyncCalling:
        """Return a context, whose value is the gRPC channel for one call."""
        return _AsyncCalling(self)

    def begin(self) -> _Channel:
        """Return the channel for a call that begins. Raise RuntimeError once closed."""
        if self._closed:
            raise _closed()
        # Not before the first call: grpc.aio binds a channel to the loop that runs now.
        if not self._open or self._opener.is_due():
            self._open.append(_Channel(self._opener.open()))
        self._open[-1].calls += 1
        return self._open[-1]

    async def end(self, channel: _Channel) -> None:
        """End a call. Close channels that no call will use any more."""
        channel.calls -= 1
        for each in [each for each in self._open[:-1] if not each.calls]:
            self._open.remove(each)
            await each.grpc.close()

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def run(self, blocking: Callable[[], T]) -> T:
        """Run `blocking` in a thread and return its result."""
        return await asyncio.to_thread(blocking)

    async def close(self) -> None:
        """Close the connection and end running calls. May be called twice."""
        self._closed = True
        for channel in self._open:
            await channel.grpc.close()


class _AsyncCalling:
    """One call over a transport."""

    __slots__ = ("_channel", "_transport")

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._channel = transport.begin()

    async def __aenter__(self) -> Any:
        return self._channel.grpc

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._transport.end(self._channel)


class Transport:
    """A connection for many threads at once. `with` it to make a call."""

    def __init__(self, access: Access) -> None:
        self._opener = _Opener(access, grpc.insecure_channel, grpc.secure_channel)
        self.credentials = access.metadata
        self._lock = threading.Lock()
        self._open = [_Channel(self._opener.open())]  # the last one is for new calls
        self._closed = threading.Event()

    def calling(self) -> _Calling:
        """Return a context, whose value is the gRPC channel for one call."""
        return _Calling(self)

    def begin(self) -> _Channel:
        """Return the channel for a call that begins. Raise RuntimeError once closed."""
        with self._lock:
            if self._closed.is_set():
                raise _closed()
            if self._opener.is_due():
                self._open.append(_Channel(self._opener.open()))
            self._open[-1].calls += 1
            return self._open[-1]

    def end(self, channel: _Channel) -> None:
        """End a call. Close channels that no call will use any more."""
        with self._lock:
            channel.calls -= 1
            idle = [each for each in self._open[:-1] if not each.calls]
            for each in idle:
                self._open.remove(each)
        for each in idle:
            each.grpc.close()

    def pause(self, seconds: float) -> None:
        """Wait, but end early when the client is closed."""
        self._closed.wait(seconds)

    def run(self, blocking: Callable[[], T]) -> T:
        """Run `blocking` and return its result."""
        return blocking()

    def close(self) -> None:
        """Close the connection and end running calls and pauses. May be called twice."""
        self._closed.set()
        with self._lock:
            channels = list(self._open)
        for channel in channels:
            channel.grpc.close()


class _Calling:
    """One call over a transport."""

    __slots__ = ("_channel", "_transport")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._channel = transport.begin()

    def __enter__(self) -> Any:
        return self._channel.grpc

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._transport.end(self._channel)


def _closed() -> RuntimeError:
    return RuntimeError("this client is closed")
