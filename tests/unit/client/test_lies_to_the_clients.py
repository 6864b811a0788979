"""Both clients against a server that lies: a result that was compared, or a WasmkilnError."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import wasmkiln
from google.rpc import error_details_pb2, status_pb2
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1 import types_pb2 as types

from tests.lying import encoded, honest, lies
from tests.lying.server import LyingServer

KEYS = [honest.MISSING, types.ArtifactKey(module_sha256="b" * 64, engine="wasmer")]

# What calls the RPC that is lied about.
METHODS: dict[str, Callable[[Any], Any]] = {
    "Load": lambda client: client.load(honest.WASM),
    "Compile": lambda client: client.compile(honest.WASM),
    "Upload": lambda client: client.load(honest.LARGE),
    "QueryUpload": lambda client: client.load(honest.LARGE),
    "Stats": lambda client: client.stats(),
    "GetCapabilities": lambda client: client.capabilities(),
    "FindMissing": lambda client: client.find_missing(KEYS),
    "Evict": lambda client: client.evict(everything=True),
    "ListQuarantine": lambda client: client.quarantined(),
    "ReleaseQuarantine": lambda client: client.release(everything=True),
    "ListJobs": lambda client: client.jobs(),
    "EndJob": lambda client: client.end_job("7"),
    "Pin": lambda client: client.pin(honest.DIGEST),
    "Unpin": lambda client: client.unpin(honest.DIGEST),
    "ListPins": lambda client: client.pins(),
    "Drain": lambda client: client.drain(),
    "UndoDrain": lambda client: client.undo_drain(),
    "Check": lambda client: client.health(),
}


@pytest.fixture
def client(
    server: LyingServer, make_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr("wasmkiln.upload.ONE_MESSAGE_BYTES", len(honest.WASM))
    server.answers.clear()
    server.sent = 0
    server.calls.clear()
    return make_client(server.address, timeout_s=30)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the WasmkilnError that it raises; nothing else may come."""
    try:
        return call()
    except wasmkiln.WasmkilnError as error:
        return error


@pytest.mark.parametrize("method", METHODS)
def test_every_field_lied_about(server: LyingServer, client: Any, method: str) -> None:
    for name, lie in lies.about(honest.ANSWERS[method]):
        told = lie.SerializeToString()
        server.answers[method] = honest.telling(method, told)
        got = outcome(lambda: METHODS[method](client))
        if method == "Load" and not isinstance(got, wasmkiln.WasmkilnError):
            assert (got.sha256, got.size_bytes) == (honest.DIGEST, len(honest.WASM)), name
        if method in ("Upload", "QueryUpload") and not isinstance(got, wasmkiln.WasmkilnError):
            assert (got.sha256, got.size_bytes) == (honest.LARGE_DIGEST, len(honest.LARGE)), name
        if method == "FindMissing" and not isinstance(got, wasmkiln.WasmkilnError):
            assert all(key in KEYS for key in got), name
        if method == "Compile" and not isinstance(got, wasmkiln.WasmkilnError):
            assert got.bytes == honest.ARTIFACT, name
            assert got.header.engine.id == f"{got.header.engine.name}-{got.header.engine.version}"


@pytest.mark.parametrize("raw", [raw for raw in lies.RAW if raw != lies.TWO])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_message(
    server: LyingServer, client: Any, capfd: Any, method: str, raw: str
) -> None:
    server.say(method, *lies.RAW[raw](honest.ANSWERS[method].SerializeToString()))
    got = outcome(lambda: METHODS[method](client))
    if raw == "garbage" or (raw == "no message" and method != "Compile"):
        assert isinstance(got, wasmkiln.UnexpectedAnswer)
    assert "Traceback" not in capfd.readouterr().err


def test_a_key_that_nobody_asked_about_is_not_missing(server: LyingServer, client: Any) -> None:
    for missing in (
        [types.ArtifactKey(module_sha256="c" * 64)],
        [KEYS[1], KEYS[0]],
        [KEYS[0], KEYS[0]],
        [types.ArtifactKey(module_sha256=honest.DIGEST, settings={"a": "b"})],
    ):
        answer = modules.FindMissingResponse(missing=missing)
        server.say("FindMissing", answer.SerializeToString())
        with pytest.raises(wasmkiln.UnexpectedAnswer, match="not asked about"):
            client.find_missing(KEYS)
    server.say("FindMissing", modules.FindMissingResponse(missing=KEYS[1:]).SerializeToString())
    assert client.find_missing(KEYS) == KEYS[1:]


# --- how the bytes come --------------------------------------------------------------------


@pytest.fixture
def packing(server: LyingServer, client: Any, make_client: Callable[..., Any]) -> Any:
    """A client that accepts packed artifacts."""
    return make_client(server.address, timeout_s=30, compression=True)


@pytest.mark.parametrize("name", encoded.TRUE)
def test_an_artifact_may_come_in_many_ways(server: LyingServer, packing: Any, name: str) -> None:
    server.answers["Compile"] = encoded.TRUE[name].answer()
    artifact = packing.compile(honest.WASM)
    assert artifact.bytes == honest.ARTIFACT
    # It is the artifact's header, however the bytes came: `save` writes it.
    assert not artifact.header.inline_artifact
    assert not artifact.header.content_encoding


@pytest.mark.parametrize("name", encoded.LIES)
def test_every_lie_about_packed_and_inline_bytes(
    server: LyingServer, packing: Any, name: str
) -> None:
    told, says = encoded.LIES[name]
    server.answers["Compile"] = told.answer()
    with pytest.raises(wasmkiln.ArtifactMismatch, match=says) as caught:
        packing.compile(honest.WASM)
    assert "\n" not in str(caught.value)


def test_what_was_not_asked_for_is_refused(server: LyingServer, client: Any) -> None:
    # This server is on loopback, so the client asks for no encoding by itself.
    server.answers["Compile"] = encoded.TRUE["one frame"].answer()
    with pytest.raises(wasmkiln.ArtifactMismatch, match="that was not asked for: zstd"):
        client.compile(honest.WASM)
    for told in (encoded.TRUE["inside the header"], encoded.TRUE["not encoded though it may be"]):
        server.answers["Compile"] = told.answer()
        with pytest.raises(wasmkiln.ArtifactMismatch, match="the header alone"):
            client.compile(honest.WASM, omit_artifact=True)


# --- streams without an end ----------------------------------------------------------------

MORE = modules.CompileResponse(chunk=bytes(1000)).SerializeToString()


def endless(
    message: bytes, pause_s: float = 0, **changes: Any
) -> Callable[[bytes, Any], Iterator[bytes]]:
    """A header with changes, and one message over and over, far beyond any test's patience."""

    def answer(request: bytes, _context: Any) -> Iterator[bytes]:
        header = honest.header(modules.CompileRequest.FromString(request))
        for name, value in changes.items():
            setattr(header, name, value)
        yield modules.CompileResponse(header=header).SerializeToString()
        for _ in range(200_000):
            time.sleep(pause_s)
            yield message

    return answer


@pytest.mark.parametrize(
    ("message", "omit", "says"),
    [
        (MORE, False, "longer than the 12000 bytes"),
        (MORE, True, "the header alone"),
    ],
)
def test_an_endless_stream_is_ended(
    server: LyingServer, client: Any, message: bytes, omit: bool, says: str
) -> None:
    server.answers["Compile"] = endless(message)
    with pytest.raises(wasmkiln.ArtifactMismatch, match=says):
        client.compile(honest.WASM, omit_artifact=omit)
    time.sleep(0.2)
    sent = server.sent
    assert sent < 50_000  # what gRPC had buffered, no more
    time.sleep(0.1)
    assert server.sent == sent


@pytest.mark.parametrize("limit", [10_000, 10_240, 1024**3])
def test_no_artifact_above_the_client_s_limit_is_received(
    server: LyingServer,
    client: Any,
    make_client: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    if limit == 10_240:
        monkeypatch.setenv("WASMKILN_MAX_ARTIFACT_BYTES", "10KiB")
    given = {"max_artifact_bytes": limit} if limit == 10_000 else {}
    limited = make_client(server.address, timeout_s=30, **given)
    for size_bytes in (limit + 1, 2**63, 2**64 - 1):
        server.answers["Compile"] = endless(MORE, size_bytes=size_bytes)
        with pytest.raises(wasmkiln.ArtifactTooLarge, match="raise max_artifact_bytes") as caught:
            limited.compile(honest.WASM)
        assert caught.value.metadata["limit_bytes"] == str(limit)
    # Without its bytes, an artifact of any size is shown.
    header = honest.header()
    header.size_bytes = 2**64 - 1
    server.say("Compile", modules.CompileResponse(header=header).SerializeToString())
    assert limited.compile(honest.WASM, omit_artifact=True).header.size_bytes == 2**64 - 1


# --- time ----------------------------------------------------------------------------------


CHUNKS = {n: modules.CompileResponse(chunk=bytes(n)).SerializeToString() for n in (0, 1)}


@pytest.mark.parametrize(
    ("message", "pause_s"),
    [(CHUNKS[1], 0.05), (b"", 0.05), (b"", 0), (CHUNKS[0], 0), (b"\xc2\x3e\x03new", 0)],
)
def test_a_drip_and_a_flood_end_at_the_deadline(
    server: LyingServer, client: Any, message: bytes, pause_s: float
) -> None:
    server.answers["Compile"] = endless(message, pause_s)
    with pytest.raises(wasmkiln.DeadlineExceeded, match=r"within 0\.5 s"):
        client.compile(honest.WASM, timeout_s=0.5)


def refuse(server: LyingServer, seconds: int) -> None:
    """Have Stats say: full, come back in so many seconds."""
    info = error_details_pb2.ErrorInfo(domain="wasmkiln", reason="COMPILE_QUEUE_FULL")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds = seconds
    status = status_pb2.Status()
    for message in (info, retry):
        status.details.add().Pack(message)
    details = status.SerializeToString()
    server.fail("Stats", grpc.StatusCode.RESOURCE_EXHAUSTED, "full", details)


@pytest.mark.parametrize("seconds", [2**63 - 1, 10**12, 365 * 24 * 3600])
def test_a_retry_in_years_is_told_and_not_waited_for(
    server: LyingServer, client: Any, seconds: int
) -> None:
    refuse(server, seconds)
    with pytest.raises(wasmkiln.CompileQueueFull) as caught:
        client.stats()
    assert caught.value.retry_after_s == float(seconds)
    assert server.calls == ["Stats"]


def test_a_retry_at_once_does_not_make_it_spin(
    server: LyingServer, client: Any, make_client: Callable[..., Any]
) -> None:
    refuse(server, -(2**63))
    with pytest.raises(wasmkiln.WasmkilnError) as caught:
        make_client(server.address, timeout_s=1.5, max_attempts=10**9).stats()
    assert caught.value.retry_after_s in (0, None)
    assert 2 <= len(server.calls) <= 8  # pauses of 0.05 s and more, doubled each time


def test_more_trailers_than_grpc_takes_are_told(server: LyingServer, client: Any) -> None:
    server.fail("Stats", grpc.StatusCode.ABORTED, "no", bytes(50_000))
    with pytest.raises(wasmkiln.UnexpectedAnswer, match="metadata is above gRPC's limit"):
        client.stats()
