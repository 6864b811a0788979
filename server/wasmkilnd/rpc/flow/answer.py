"""An answer on its way: how much of it its caller has not read, and since when."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Artifact

Context = Any  # a grpc.aio.ServicerContext; grpcio ships no types


@dataclass(slots=True, eq=False)
class Answer:
    """An answer on its way."""

    context: Context
    caller: str
    task: asyncio.Task[Any]
    artifact: Artifact | None
    unread_bytes: int = 0
    """The size of the message that gRPC holds until the caller reads."""
    since_s: float = 0.0
    """When that message was written."""
    taken_bytes: int = 0
    """What the caller has read since ``counted_since_s``."""
    counted_since_s: float = 0.0
    """When the answer began, or later: when a call began to wait for room."""
    is_last: bool = False
    """Whether that message is the last one. The handler has returned, so none can follow it."""
    refusal: WasmkilnError | None = None
    """Why the answer is ended before all of it was sent."""
    refusing: bool = False
    """Whether the refusal waits for the caller to read it."""
    given_up: bool = False
    """Whether the caller did not read that either."""

    def stalled(self, now: float, for_s: float) -> bool:
        """Return whether the caller has read nothing of a message for so long."""
        return bool(self.unread_bytes) and now - self.since_s >= for_s and not self.given_up

    def pace(self, now: float, since_s: float) -> float:
        """Return how many bytes a second are read; infinite if it began within ``since_s``."""
        if self.refusing:
            return 0.0
        seconds = now - self.counted_since_s
        return self.taken_bytes / seconds if seconds >= since_s else math.inf
