"""How one call is followed through the daemon, and from service to service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from wasmkilnd.ports.claims import Fleet
from wasmkilnd.ports.engines import Engines
from wasmkilnd.ports.recorder import Recorder


class CallTrace(Protocol):
    """The trace that one call belongs to."""

    @property
    def trace_id(self) -> str:
        """Its id for the log; empty if nobody can look it up."""
        ...

    def end(self, code: str, reason: str, about: Mapping[str, str | int | float | None]) -> None:
        """Note that the call has ended with a gRPC code; what is None or empty is left out."""
        ...


class Tracing(Protocol):
    """Follows calls through the daemon. Without it the daemon serves the same.

    No method waits or raises. The context of a task tells which call the task works for, so the
    request path passes nothing on; nothing but the trace and the log reads it.
    """

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallTrace:
        """Begin the trace of a call that the running task answers, or go on with its caller's."""
        ...

    def recorder(self) -> Recorder:
        """Return a recorder that adds look-ups and writes to the trace of the call."""
        ...

    def engines(self, engines: Engines) -> Engines:
        """Return ``engines``, with each wait for a worker and each job as a step of the trace."""
        ...

    def fleet(self, fleet: Fleet) -> Fleet:
        """Return ``fleet``, with each request for a lease and each wait as a step of the trace."""
        ...

    def carry(self) -> AbstractContextManager[None]:
        """Return a context for work that the running task leaves to another: it is this call's."""
        ...
