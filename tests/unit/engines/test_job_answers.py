"""A job's answer fits into its frame, whatever names the module has."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from typing import Any

import pytest
from wasmkilnd.engines.child import frames, job
from wasmkilnd.engines.child.engine import Extern, ModuleRefused
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

    exports: list[Extern]
    refusal: str = ""
    name: str = "talkative"

    def seal(self) -> None:
        """Confine nothing."""

    def configure(self, *_: object) -> None:
        """Take any settings."""

    def compile(self, *_: object) -> None:
        """Refuse, if there are words for it."""
        if self.refusal:
            raise ModuleRefused(self.refusal)

    def serialize(self, _: object) -> bytes:
        return b"code"

    def externs(self, *_: object) -> tuple[list[Extern], list[Extern]]:
        return [], self.exports


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


@pytest.mark.parametrize("sign", ["a", "é", "鳥", "🔥", '"', "\n", "\x01", "\x7f"])
@pytest.mark.parametrize(
    "length", [0, 1, 30, 1000, 5000], ids=lambda length: f"{length}-characters"
)
async def test_names_of_any_kind_and_length(sign: str, length: int) -> None:
    exports = [("", f"{sign * length}{number}", "function", "() -> ()") for number in range(1000)]
    said = await said_by(Talkative(exports))
    sent = [list(row) for row in exports]
    assert [list(row) for row in said.exports] == sent[: len(said.exports)]
    text_bytes = len(json.dumps(sent, ensure_ascii=False).encode())
    assert said.types_truncated == (text_bytes > 256 * 1024)
    assert (len(said.exports) == 1000) != said.types_truncated


@pytest.mark.parametrize("sign", ["a", "🔥", "\x01", "\udc80"])
async def test_words_of_any_length(sign: str) -> None:
    said = await said_by(Talkative([], f"name `{sign * 5_000_000}` twice (at offset 0x20)"))
    assert (said.outcome, said.offset) == ("invalid", 0x20)
    assert said.message.startswith("name `")
    assert said.message.endswith("` twice (at offset 0x20)")


def test_the_largest_answer_leaves_room_in_its_frame() -> None:
    assert frames.MOST_BYTES > (job._MAX_TYPES_BYTES + 2 * 6 * job._MAX_MESSAGE_END + 1024)
