"""What a job says: a short sequence of whole frames, whatever it tries, never at others' cost."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import replace

import pytest
from wasmkilnd.engines.child.frames import HEADER, Type
from wasmkilnd.engines.job import JobOrder, JobReport, exchange

from tests.unit.engines.limits import LIMITS


def order(artifact_limit_bytes: int = 1000) -> JobOrder:
    return JobOrder(
        {"op": "compile"}, replace(LIMITS, artifact_bytes=artifact_limit_bytes), b"\0asm"
    )


def frame(kind: Type, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


OK = json.dumps({"outcome": "ok"}).encode()
SET_UP, CONFIGURED, COMPILED = map(frame, (Type.SET_UP, Type.CONFIGURED, Type.COMPILED))
ARTIFACT, RESULT = frame(Type.ARTIFACT, b"code"), frame(Type.RESULT, OK)


async def report_of(said: bytes) -> JobReport:
    """Return what the daemon makes of a job that says this and ends."""
    report = JobReport()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        await exchange(ours, order(), report)
    return report


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ([SET_UP, SET_UP], "SET_UP"),
        ([CONFIGURED, SET_UP], "SET_UP"),
        ([CONFIGURED, CONFIGURED], "CONFIGURED"),
        ([CONFIGURED, COMPILED, COMPILED], "COMPILED"),
        ([COMPILED, CONFIGURED], "CONFIGURED"),
        ([ARTIFACT, ARTIFACT], "ARTIFACT"),
        ([ARTIFACT, COMPILED], "COMPILED"),
        ([RESULT, RESULT], "RESULT"),
        ([RESULT, ARTIFACT], "ARTIFACT"),
        ([frame(Type.READY, b"{}")], "READY"),
        ([CONFIGURED, frame(Type.MODULE, b"\0asm")], "MODULE"),
    ],
)
async def test_anything_else_is_an_error(said: Sequence[bytes], named: str) -> None:
    report = await report_of(b"".join(said))
    assert report.protocol_error == f"unexpected {named} frame"


@pytest.mark.parametrize("cut", [1, 3, len(HEADER.pack(0, 0)) + 2])
async def test_an_end_in_the_middle_of_a_frame_is_an_end(cut: int) -> None:
    """An engine may be killed at any moment, and how it ended tells why."""
    report = await report_of(CONFIGURED + ARTIFACT[:cut])
    assert report == JobReport(sent={Type.CONFIGURED})
