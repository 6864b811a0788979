"""Who pays for work: what an identity may use, as the request path sees it.

The classes here count nothing and refuse nothing: they are what a caller without a quota gets.
Those that count are in ``access.quotas``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Identity


class Bill:
    """What one piece of work costs the account that started it. For one event loop.

    Others may wait for the same work; they pay nothing.
    """

    def no_place_in_queue(
        self, engine_id: str, size_bytes: int, wait_s: Callable[[], float]
    ) -> WasmkilnError | None:
        """Return QUOTA_EXCEEDED if one more of its jobs may not wait for a worker, else None."""
        return None

    def waiting(self, engine_id: str, size_bytes: int) -> AbstractContextManager[None]:
        """Count a job that waits for a worker, for as long as the context lasts."""
        return nullcontext()

    def job_began(self) -> None:
        """Note that a worker works on it: then it is not free any more."""

    def job_ended(self, cpu_s: float) -> None:
        """Charge the CPU time of a job that has ended, however it ended."""

    def stored(self, size_bytes: int) -> None:
        """Charge a module or an artifact that is stored."""

    def close(self) -> None:
        """End the work: what it held is free again. A second call does nothing."""


class Account:
    """What one identity may use, and what it has used. For one event loop."""

    def enter(self) -> None:
        """Count a call. Raises QUOTA_EXCEEDED."""

    def leave(self) -> None:
        """Note that a call has ended."""

    def hold(self, size_bytes: int) -> None:
        """Count bytes of a request. Raises QUOTA_EXCEEDED."""

    def hold_more(self, size_bytes: int) -> None:
        """Count what a request that was let in takes besides."""

    def release(self, size_bytes: int) -> None:
        """Stop counting bytes."""

    def start(self, size_bytes: int, *, compiles: bool, arrived: bool) -> Bill:
        """Return the bill of work on a module of ``size_bytes``. Raises QUOTA_EXCEEDED.

        A module that has ``arrived`` with the call was let in by ``hold`` already.
        """
        return FREE

    def behind(self) -> Account | None:
        """Return who pays for a compile that no caller waits for; None if there is to be none."""
        return self


FREE = Bill()
UNLIMITED = Account()
"""The account of callers without a quota."""


def unlimited(_: Identity) -> Account:
    """Return the account of every identity where there are no quotas."""
    return UNLIMITED
