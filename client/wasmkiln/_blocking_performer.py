"""Performs the steps of flows; generated from _aio_performer.py by `make client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from wasmkiln._flow import Pause, Stream, Unary
from wasmkiln._transports import Transport

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from wasmkiln._flow import Flow, Step
    from wasmkiln.access import Access

T = TypeVar("T")


class Performer:
    """A connection, and what performs the steps of flows over it; a client derives from it."""

    def __init__(self, access: Access) -> None:
        self._transport = Transport(access)

    def close(self) -> None:
        """Close the connection and end running calls. May be called twice."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                outcome, failure = None, None
                try:
                    outcome = self._perform(step)
                except Exception as error:
                    failure = error
                # Outside of the except block: otherwise the error would keep the RpcError alive.
                step = flow.send(outcome) if failure is None else flow.throw(failure)
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            flow.close()

    def _perform(self, step: Step) -> object:
        if isinstance(step, (Unary, Stream)):
            with self._transport.calling() as channel:
                call = step.begin(channel, self._transport.credentials())
                if isinstance(step, Unary):
                    return call
                try:
                    for message in call:
                        step.sink(message)
                finally:
                    call.cancel()  # no effect once it has ended
            return None
        if isinstance(step, Pause):
            self._transport.pause(step.seconds)
            return None
        return self._transport.run(step.run)
