"""When to try again, and how long to wait before."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from wasmkiln.errors import WasmkilnError


class Deadline:
    """The moment at which a call ends, over all of its attempts."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end_s = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left; zero or less once the deadline has passed."""
        return self._end_s - time.monotonic()


@dataclass(frozen=True)
class RetryPolicy:
    """Tries again only where the error says so, with exponential backoff and jitter.

    An error says so by a RetryInfo, whose delay is kept to, or by the code UNAVAILABLE: no
    connection, or a daemon that shuts down. Every call of the API is idempotent, so that
    trying again is safe after an UNAVAILABLE that came late.
    """

    max_attempts: int = 3
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    random_unit: Callable[[], float] = field(default=random.random, repr=False)

    def pause_s(self, error: WasmkilnError, attempt: int, remaining_s: float) -> float | None:
        """Seconds to wait after the failure of attempt 1, 2, …; None: give up.

        It is never a pause that the remaining time doesn't allow.
        """
        if attempt >= self.max_attempts:
            return None
        doublings = min(attempt - 1, 30)
        backoff_s = min(self.longest_pause_s, self.first_pause_s * 2**doublings)
        backoff_s *= 0.5 + 0.5 * self.random_unit()  # not all callers at the same moment
        if error.retry_after_s is not None:
            # Later than asked and never earlier, nor at once: a daemon may always say 0.
            pause_s = max(0.0, error.retry_after_s) + backoff_s
        elif error.code is grpc.StatusCode.UNAVAILABLE:
            pause_s = backoff_s
        else:
            return None
        return pause_s if pause_s < remaining_s else None
