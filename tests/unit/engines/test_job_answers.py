"""What a job answers fits into its frame, whatever names the module has.

The names that a module has are listed in tests/e2e/test_engines.py.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

import pytest
from wasmkilnd.engines.child import job
from wasmkilnd.engines.child.engine import ModuleRefused
from wasmkilnd.engines.process import JobOrder, JobReport, exchange
from wasmkilnd.engines.verdict import JobResult

from tests.unit.engines.limits import LIMITS

ORDER = JobOrder(
    {"op": "compile", "kind": "core", "target": "", "cpu": "native", "settings": {}},
    LIMITS,
    b"\0asm",
)


@dataclass
class Talkative:
    """Stands in for an engine, and for the confinement of its job."""

    refusal: str
    name: str = "talkative"

    def seal(self) -> None:
        """Confine nothing."""

    def configure(self, *_: object) -> None:
        """Take any settings."""

    def compile(self, *_: object) -> None:
        """Refuse."""
        raise ModuleRefused(self.refusal)


async def said_by(engine: Any) -> JobResult:
    """Have a job answer for real, and the daemon read it."""
    report = JobReport()
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs:
            job.run(engine, theirs, engine)

    with ours:
        ours.setblocking(False)
        answering = asyncio.create_task(asyncio.to_thread(run))
        await exchange(ours, ORDER, report)
    await answering
    assert report.protocol_error == ""
    assert report.result is not None
    return JobResult.model_validate(report.result)


@pytest.mark.parametrize("sign", ["a", "🔥", "\x01", "\udc80"])
async def test_words_of_any_length(sign: str) -> None:
    said = await said_by(Talkative(f"name `{sign * 5_000_000}` twice (at offset 0x20)"))
    assert (said.outcome, said.offset) == ("invalid", 0x20)
    assert said.message.startswith("name `")
    assert said.message.endswith("` twice (at offset 0x20)")
