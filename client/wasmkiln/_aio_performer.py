"""Performs the steps of flows in an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from wasmkiln._flow import Pause, Stream, Unary
from wasmkiln._transports import AsyncTransport

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from wasmkiln._flow import Flow, Step
    from wasmkiln.access import Access

T = TypeVar("T")


class AsyncPerformer:
    """A connection, and what performs the steps of flows over it; a client derives from it."""

    def __init__(self, access: Access) -> None:
        self._transport = AsyncTransport(access)

    async def close(self) -> None:
        """Close the connection and end running calls. May be called twice."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow[T]) -> T:
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

    async def _perform(self, step: Step) -> object:
        if isinstance(step, (Unary, Stream)):
            async with self._transport.calling() as channel:
                call = step.begin(channel, self._transport.credentials())
                if isinstance(step, Unary):
                    return await call
                try:
                    async for message in call:
                        step.sink(message)
                finally:
                    call.cancel()  # no effect once it has ended
            return None
        if isinstance(step, Pause):
            await self._transport.pause(step.seconds)
            return None
        return await self._transport.run(step.run)
