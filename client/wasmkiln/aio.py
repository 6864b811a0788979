"""The client for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from wasmkiln import rpc
from wasmkiln.client import Methods
from wasmkiln.errors import WasmkilnError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

T = TypeVar("T")

# How often a pause between two attempts looks whether the client was closed.
_LOOK_S = 0.1


class AsyncClient(Methods):
    """A client of a wasmkiln daemon from one event loop; safe for use by many of its tasks at once.

    Its arguments, methods and errors are those of `Client`; each method is awaited.
    Make it inside or outside of the loop. It reads and hashes files in a thread. Cancelling a task
    ends its call; the daemon finishes what it is compiling for it, and caches the artifact.
    """

    async def close(self) -> None:
        """Close the connection and end running calls. May be called twice."""
        for channel in self._connection.close():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, flow: rpc.Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                outcome, failure = None, None
                try:
                    outcome = await self._perform(step)
                except Exception as error:
                    failure = error
                # Outside of the except block: otherwise the error would keep the RpcError alive.
                step = flow.send(outcome) if failure is None else flow.throw(failure)
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            flow.close()

    async def _perform(self, step: rpc.Send | float | Callable[[], Any]) -> Any:
        if isinstance(step, float):
            while step > 0 and not self._connection.closed.is_set():
                await asyncio.sleep(min(step, _LOOK_S))
                step -= _LOOK_S
            return None
        if not isinstance(step, rpc.Send):
            return await asyncio.to_thread(step)
        import grpc.aio

        # Not before the first call: grpc.aio binds a channel to the loop that runs now.
        channel = self._connection.channel(grpc.aio)
        call = step.begin(channel)
        try:
            async for message in call:
                step.sink.add(message)
        except asyncio.CancelledError:
            task: Any = asyncio.current_task()  # which counts its cancellations from 3.11 on
            if getattr(task, "cancelling", int)() or not self._connection.closed.is_set():
                raise
            # `close` ended the call, and nobody cancelled the task.
            raise WasmkilnError("the client was closed", code=grpc.StatusCode.CANCELLED) from None
        finally:
            call.cancel()  # no effect once it has ended
