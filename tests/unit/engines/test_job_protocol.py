"""What a job says: a short sequence of whole frames, whatever it tries, never at others' cost."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from wasmkilnd.engines.child import frames, job
from wasmkilnd.engines.child.engine import ModuleRefused
from wasmkilnd.engines.child.frames import HEADER, Type
from wasmkilnd.engines.process import JobOrder, JobReport, exchange
from wasmkilnd.engines.verdict import JobResult
from wasmkilnd.model import pack

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
    "said",
    [
        [SET_UP],
        [SET_UP, RESULT],
        [SET_UP, CONFIGURED, COMPILED, ARTIFACT, RESULT],
        [CONFIGURED, RESULT],
        [CONFIGURED, COMPILED, RESULT],
        [CONFIGURED, COMPILED, ARTIFACT, RESULT],
    ],
)
async def test_what_jobs_say(said: Sequence[bytes]) -> None:
    report = await report_of(b"".join(said))
    assert report.protocol_error == ""
    assert report.result == ({"outcome": "ok"} if RESULT in said else None)
    assert report.set_up == (SET_UP in said)
    assert report.configured == (CONFIGURED in said)
    assert report.compiled == (COMPILED in said)
    assert report.packed == (pack(b"code") if ARTIFACT in said else None)


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
    assert report == JobReport(configured=True)


# What a job answers fits into its frame, whatever names the module has


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


# Frames: whole or not at all, and never longer than allowed


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, 1_000_000])
def test_round_trip(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=frames.send, args=(ours, Type.ARTIFACT, b"x" * size))
        sender.start()
        kind, payload = frames.receive(theirs, size)
        sender.join()
    assert kind is Type.ARTIFACT
    assert payload == b"x" * size


def test_a_process_that_is_stopped_in_the_middle_receives_the_rest() -> None:
    """So do those of a machine that sleeps, and of a container that is paused."""
    ours, theirs = socket.socketpair()
    program = (
        "import socket, sys; from wasmkilnd.engines.child import frames;"
        " _, payload = frames.receive(socket.socket(fileno=int(sys.argv[1])), 10);"
        " raise SystemExit(payload != b'0123456789')"
    )
    with ours, theirs:
        ours.sendall(frames.HEADER.pack(Type.MODULE, 10) + b"01234")
        command = [sys.executable, "-c", program, str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as receiver:
            while any(fcntl.ioctl(ours, termios.TIOCOUTQ, bytes(4))):  # not received
                time.sleep(0.01)
            receiver.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, receiver.pid, os.WSTOPPED)
            receiver.send_signal(signal.SIGCONT)
            time.sleep(0.1)
            ours.sendall(b"56789")
            assert receiver.wait(30) == 0


@pytest.mark.parametrize("sent", [b"", b"\x01", b"\x01\0\0\0\x05abc"])
def test_an_end_in_the_middle(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(sent)
        ours.close()
        with pytest.raises(EOFError):
            frames.receive(theirs, 10)
