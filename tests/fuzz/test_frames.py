"""Whatever a job or a worker sends, the daemon reaches an answer that it can send.

A job runs a compiler over a stranger's module: it has to be taken for somebody who speaks the
protocol and means harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln.v1.types_pb2 import ImportType
from wasmkilnd.engines import job, verdict
from wasmkilnd.engines.child import frames
from wasmkilnd.engines.child.frames import HEADER, Type
from wasmkilnd.engines.job import JobOrder, JobReport
from wasmkilnd.engines.process import Ended, Worker, WorkerDied
from wasmkilnd.engines.verdict import Outcome
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import ExternType, Limits
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.messages import to_status

from tests.fuzz.bytes_from_outside import anything, corpus, json_values, kept

# As it is by default: far above what any other frame may hold.
ARTIFACT_LIMIT = 256 * 1024**2
LIMITS = Limits(1, ARTIFACT_LIMIT, 30, 60, 4096, 1, 1000)
ORDER = JobOrder({"op": "compile"}, LIMITS, b"\0asm")
REASONS = {
    *(Reason.COMPILER_CRASHED, Reason.COMPILE_MEMORY_LIMIT, Reason.COMPILE_TIMEOUT),
    *(Reason.ARTIFACT_TOO_LARGE, Reason.SETTING_UNKNOWN),
}

rows = st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=5), max_size=4)
results = st.fixed_dictionaries(
    {},
    optional={
        "outcome": st.sampled_from(
            ["ok", "invalid", "unsupported", "settings_refused", "too_large", "out_of_memory"]
        )
        | json_values,
        "message": st.text(st.characters(exclude_categories=()), max_size=600) | json_values,
        "offset": st.integers() | json_values,
        "seconds": st.floats() | json_values,
        "size_bytes": st.integers() | json_values,
        "imports": rows | json_values,
        "exports": rows | json_values,
        "types_truncated": st.booleans() | json_values,
    },
)
payloads = st.one_of(
    st.builds(lambda value: json.dumps(value).encode(), results | json_values),
    st.binary(max_size=64),
)
framed = st.builds(
    lambda kind, payload: HEADER.pack(kind, len(payload)) + payload,
    st.sampled_from([*Type]) | st.integers(0, 255),
    payloads,
)
streams = st.lists(framed, max_size=5).map(b"".join) | anything("frames")


async def send_and_go(sock: socket.socket, stream: bytes) -> None:
    with contextlib.suppress(OSError):  # The other side may have heard enough.
        await asyncio.get_running_loop().sock_sendall(sock, stream)
        sock.shutdown(socket.SHUT_WR)


async def with_peer(stream: bytes, hear: Callable[[socket.socket], Awaitable[object]]) -> None:
    """Have the daemon hear what a peer sends, who then goes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        sending = asyncio.create_task(send_and_go(theirs, stream))
        await hear(ours)
        sending.cancel()  # The daemon may have heard enough.


def what_comes_of(stream: bytes, ended: dict[str, int | None]) -> JobReport:
    """Have the daemon exchange with a job that sends ``stream`` and goes."""
    report = JobReport(memory_bytes=LIMITS.compile_memory_bytes, **ended)  # type: ignore[arg-type]
    asyncio.run(with_peer(stream, lambda ours: job.exchange(ours, ORDER, report)))
    return report


def check(report: JobReport) -> None:
    """A verdict, or an error of the contract, and both can be sent to a caller."""
    try:
        said = verdict.read(report, "wasmtime-1", "compiling", LIMITS)
        valid = said.outcome is Outcome.VALID
        code = verdict.compiled_code(report, "wasmtime-1", 0.0) if valid else None
    except WasmkilnError as failure:
        assert failure.reason in REASONS
        assert "\n" not in failure.message
        assert len(to_status(failure).SerializeToString()) < 8000
        return
    assert len(said.message) < 500
    assert said.message.isprintable()
    if code:
        assert code.code.size_bytes <= ARTIFACT_LIMIT
        for row in [*code.result.imports, *code.result.exports]:
            ImportType(**messages._export(ExternType(*row))).SerializeToString()


ends = st.sampled_from(
    [*({"exit_code": code} for code in (0, 70)), *({"signal": number} for number in (6, 9, 24, 40))]
)


@kept(*corpus("frames"), then=({"exit_code": 0},))
@given(streams, ends)
def test_whatever_a_job_sends_ends_in_a_verdict_or_an_error_of_the_contract(
    stream: bytes, ended: dict[str, int | None]
) -> None:
    check(what_comes_of(stream, ended))


@given(st.sampled_from([*Type]), st.integers(0, 2**32 - 1))
def test_a_job_announces_no_more_than_its_frame_may_hold(kind: Type, size: int) -> None:
    limit = ARTIFACT_LIMIT if kind in (Type.ARTIFACT, Type.MODULE) else 320 * 1024
    report = what_comes_of(HEADER.pack(kind, size), {"exit_code": 0})
    assert ("above its limit" in report.protocol_error) or size <= limit
    check(report)


@given(streams)
def test_whatever_a_worker_sends_it_is_understood_or_given_up(stream: bytes) -> None:
    async def listen(ours: socket.socket) -> None:
        worker = Worker(process=None, control=ours, pid=1)  # type: ignore[arg-type]
        with pytest.raises(WorkerDied):
            while True:
                await worker.frame(Type.ENDED, Ended.model_validate_json)

    asyncio.run(with_peer(stream, listen))


@given(streams, st.integers(0, 4096))
def test_whatever_a_daemon_sends_a_job_reads_frames_or_stops(stream: bytes, limit: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # As much as there is room for.
            theirs.send(stream)
        theirs.close()
        with pytest.raises((EOFError, frames.FrameError)):
            while True:
                _, payload = frames.receive(ours, limit)
                assert len(payload) <= max(limit, frames.MOST_BYTES)
