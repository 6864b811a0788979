"""Every call of a soak: when it began, when it had to end, and when and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
from grpc import aio
from wasmkiln import ArtifactMismatch, AttestationInvalid, WasmkilnError
from wasmkiln.rpc import error_from_rpc

from tests.soak.fleet import Life

OK = "OK"
CANCELLED = "CANCELLED"
WRONG = "WRONG"
ONLY_OK = frozenset({OK})


@dataclass(eq=False)
class Call:
    """One call to one process of a daemon. Times are on the monotonic clock."""

    kind: str
    life: Life
    expected: frozenset[str]
    """The outcomes that are right, ``OK`` or reasons."""
    timeout_s: float
    began_s: float = field(default_factory=time.monotonic)
    deadline_s: float = 0.0
    """When it had to have ended: its own deadline, or the moment at which it was cancelled."""
    ended_s: float = float("inf")
    outcome: str = ""
    said: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    origin: int = 0
    wrong: str = ""
    """What is wrong with the artifact that it got."""

    def __post_init__(self) -> None:
        self.deadline_s = self.began_s + self.timeout_s

    def hurry(self) -> None:
        """Record that the call was cancelled, and has to end now."""
        self.deadline_s = time.monotonic()

    @property
    def group(self) -> str:
        """The group of its kind: all hostile calls are one group."""
        return self.kind.partition(":")[0]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_s - self.began_s

    @property
    def unaffected(self) -> bool:
        """Whether the process that it called lived from its beginning to its end.

        Nothing else excuses a call: not the death of workers, of Redis, or of another daemon.
        """
        return self.ended_s < self.life.doomed_s

    @property
    def as_expected(self) -> bool:
        """Whether it ended in a way that is right for it."""
        return self.outcome in self.expected and not self.wrong


class Ledger:
    """Keeps the calls, in the order in which they began."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @contextmanager
    def call(
        self, kind: str, life: Life, timeout_s: float, expected: frozenset[str] = ONLY_OK
    ) -> Iterator[Call]:
        """Record the call that the context makes. An error of the call ends here."""
        call = Call(kind, life, expected, timeout_s)
        self.calls.append(call)
        try:
            yield call
            call.outcome = call.outcome or OK
        except asyncio.CancelledError:
            call.outcome = CANCELLED
            raise
        except (ArtifactMismatch, AttestationInvalid) as untrue:
            call.outcome, call.wrong = WRONG, str(untrue)
        except aio.AioRpcError as failure:
            _note(call, error_from_rpc(failure, address="the daemon", timeout_s=timeout_s))
        except WasmkilnError as failure:
            _note(call, failure)
        except (aiohttp.ClientError, TimeoutError) as failure:
            late = isinstance(failure, TimeoutError)
            call.outcome, call.said = "DEADLINE_EXCEEDED" if late else "CUT", str(failure)
        finally:
            call.ended_s = time.monotonic()


def _note(call: Call, failure: WasmkilnError) -> None:
    call.outcome = failure.reason or failure.code.name
    call.said = failure.message
    call.metadata = dict(failure.metadata)
