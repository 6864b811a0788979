"""The client for asyncio."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from wasmkiln.client import Methods
from wasmkiln.errors import WasmkilnError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Self

    from wasmkiln.client import Sink

T = TypeVar("T")

# So many uploads in pieces go at once; the others wait for one of them.
_MOST_THREADS = 32
# How often a pause between two attempts looks whether the client was closed.
_LOOK_S = 0.1


class AsyncClient(Methods):
    """A client of a wasmkiln daemon for asyncio; safe for use by many tasks at once.

    Its arguments, methods and errors are those of `Client`; each method is awaited.
    Make it inside or outside of a loop; it has a connection for each loop that calls. It reads and
    hashes files in threads of its own, and waits there for an upload in pieces. Cancelling a task
    ends its call and that wait; the daemon finishes what it is compiling for it, and caches the
    artifact.
    """

    async def close(self) -> None:
        """Close the connection and end running calls. May be called twice."""
        for channel in self._connection.close():
            if (closing := channel.close()) is not None:  # of grpc.aio
                await closing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _run(self, flow: Coroutine[Any, Any, Any]) -> Any:
        return flow

    async def _send(self, path: str, wire: bytes, sink: Sink, **call: Any) -> None:
        import grpc.aio

        channel = self._connection.channel(grpc.aio, asyncio.get_running_loop())
        running = channel.unary_stream(path)(wire, **call)
        try:
            async for message in running:
                sink.add(message)
        except asyncio.CancelledError:
            task: Any = asyncio.current_task()  # which counts its cancellations from 3.11 on
            if getattr(task, "cancelling", int)() or not self._connection.closed.is_set():
                raise
            # `close` ended the call, and nobody cancelled the task.
            raise WasmkilnError("the client was closed", code=grpc.StatusCode.CANCELLED) from None
        finally:
            running.cancel()  # no effect once it has ended

    async def _pause(self, pause_s: float) -> None:
        while pause_s > 0 and not self._connection.closed.is_set():
            await asyncio.sleep(min(pause_s, _LOOK_S))
            pause_s -= _LOOK_S

    async def _wait_for(self, other: Future[Any], timeout_s: float) -> None:
        ending = asyncio.wrap_future(other)
        try:
            await asyncio.wait([ending], timeout=max(0.0, timeout_s))
        finally:
            ending.cancel()  # no effect on the other call

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """Threads of its own: what waits for an upload must not hold those of the program."""
        return ThreadPoolExecutor(_MOST_THREADS, "wasmkiln")

    async def _away(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
