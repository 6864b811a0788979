"""A call as a flow of steps, with its deadline and its attempts, and without any I/O.

A flow is a generator. It yields a step (a call, a pause, something that blocks); Client and
AsyncClient perform the step, each in its own way, and send its outcome back, or throw its
failure into the generator. So deadlines and attempts are written once for both.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from wasmkiln._status import error_from_rpc
from wasmkiln._tracing import trace_metadata
from wasmkiln.access.diagnosis import explained, is_lasting
from wasmkiln.errors import ConnectionFailed

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from wasmkiln._methods import Method
    from wasmkiln.access import Access
    from wasmkiln.access.token import Metadata
    from wasmkiln.errors import WasmkilnError

T = TypeVar("T")


@dataclass(frozen=True)
class Unary:
    """Call `method`; the outcome is what `method.read` makes of its answer."""

    method: Method
    request: Message
    timeout_s: float
    metadata: Metadata = ()

    def begin(self, channel: Any, credentials: Metadata) -> Any:
        """Start the call on a channel of either kind. Return what gRPC returns."""
        return _start(channel.unary_unary, self, credentials)


@dataclass(frozen=True)
class Stream:
    """Call `method` and hand what `method.read` makes of each message to `sink`."""

    method: Method
    request: Message
    timeout_s: float
    sink: Callable[[Any], None]
    metadata: Metadata = ()

    def begin(self, channel: Any, credentials: Metadata) -> Any:
        """Start the call on a channel of either kind. Return what gRPC returns."""
        return _start(channel.unary_stream, self, credentials)


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class Blocking:
    """Run something that reads files or uses the CPU; the outcome is its result."""

    run: Callable[[], Any]


Step = Unary | Stream | Pause | Blocking
Flow = Generator[Step, Any, T]


def _start(shape: Any, step: Unary | Stream, credentials: Metadata) -> Any:
    call = shape(
        step.method.path,
        request_serializer=type(step.request).SerializeToString,
        response_deserializer=step.method.read,
    )
    metadata = step.metadata + credentials + trace_metadata()
    return call(step.request, timeout=step.timeout_s, metadata=metadata)


class Deadline:
    """The moment at which a call ends, all of its attempts included."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end_s = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Return the seconds left; zero or less once the deadline has passed."""
        return self._end_s - time.monotonic()


@dataclass(frozen=True)
class RetryPolicy:
    """Try again only where the error allows it, with exponential backoff and jitter.

    An error allows it by a RetryInfo, whose delay is kept, or by the code UNAVAILABLE: the
    connection failed, or the daemon shuts down. Every RPC is idempotent, so trying again is
    safe even if the daemon did the work before the connection broke.
    """

    max_attempts: int = 3
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    random_unit: Callable[[], float] = field(default=random.random, repr=False)

    def pause_s(self, error: WasmkilnError, attempt: int, remaining_s: float) -> float | None:
        """Return the seconds to wait after the failure of attempt 1, 2, …, or None to give up.

        Give up where the remaining time does not allow the pause.
        """
        if attempt >= self.max_attempts:
            return None
        doublings = min(attempt - 1, 30)
        backoff_s = min(self.longest_pause_s, self.first_pause_s * 2**doublings)
        backoff_s *= 0.5 + 0.5 * self.random_unit()  # callers do not all come at the same moment
        if error.retry_after_s is not None:
            # Later than the daemon asked, never earlier, and never at once: a daemon may send 0.
            pause_s = max(0.0, error.retry_after_s) + backoff_s
        elif error.code is grpc.StatusCode.UNAVAILABLE:
            pause_s = backoff_s
        else:
            return None
        return pause_s if pause_s < remaining_s else None


def attempts(
    step: Callable[[float], Step], deadline: Deadline, retry: RetryPolicy, access: Access
) -> Flow[Any]:
    """Perform `step(timeout_s)`, again where the policy allows it, and return its outcome.

    Raise the WasmkilnError of the last attempt, or of one that no other attempt can heal.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            return (yield step(deadline.remaining_s()))  # with no time left, grpc fails it at once
        except grpc.RpcError as failure:
            error = error_from_rpc(failure, address=access.address, timeout_s=deadline.timeout_s)
        # Outside of the except block: otherwise the raised error would keep the RpcError alive.
        pause_s = retry.pause_s(error, attempt, deadline.remaining_s())
        if isinstance(error, ConnectionFailed) and (pause_s is None or is_lasting(error)):
            explain = partial(explained, error, access, deadline.remaining_s())
            error = yield Blocking(explain)
            if "cause" in error.metadata:
                raise error
        if pause_s is None:
            raise error
        yield Pause(pause_s)
