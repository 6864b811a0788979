"""Large modules and artifacts: calls that are cut go on, and everything crosses the wire once."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import wasmkiln
from h2.errors import ErrorCodes
from wasmkiln import Phase, Progress
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1 import types_pb2 as types

from tests.lying import encoded, honest
from tests.polyglot.lies import resetting_server
from tests.unit.client.fake_daemon import Refusal
from tests.unit.client.test_lies_to_the_command import on_a_terminal

if TYPE_CHECKING:
    from tests.lying.server import LyingServer
    from tests.unit.client.fake_daemon import FakeDaemon

LARGE_BYTES, PIECE_BYTES = 50_000, 1000
WASM = b"\0asm\x01\0\0\0" + bytes(range(256)) * 400
DIGEST = hashlib.sha256(WASM).hexdigest()
LOST = Refusal(grpc.StatusCode.UNAVAILABLE)
TAKEN_OVER = Refusal(grpc.StatusCode.ABORTED, "UPLOAD_INTERRUPTED", metadata={"held_bytes": "7"})


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmkiln.upload.ONE_MESSAGE_BYTES", LARGE_BYTES)
    monkeypatch.setattr("wasmkiln.upload._PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr("wasmkiln.rpc._FIRST_PAUSE_S", 0.01)


@pytest.fixture(params=["bytes", "path"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A module that does not fit into one message."""
    if request.param == "bytes":
        return WASM
    (tmp_path / "large.wasm").write_bytes(WASM)
    return tmp_path / "large.wasm"


def asked(daemon: FakeDaemon) -> list[str]:
    return [method for method, _ in daemon.calls]


def test_a_large_module_goes_in_pieces(daemon: FakeDaemon, client: Any, source: Any) -> None:
    seen: list[tuple[Progress, Any]] = []
    here = threading.current_thread()

    def see(progress: Progress) -> None:
        seen.append((progress, threading.current_thread()))

    answer = client.load(source, engine="wasmtime", background=True, on_progress=see)
    assert (answer.sha256, answer.size_bytes) == (DIGEST, len(WASM))
    assert daemon.modules == {DIGEST: WASM}
    assert daemon.arrived_bytes == len(WASM)
    assert asked(daemon) == ["QueryUpload", "Upload"]
    first = daemon.requests("Upload")[0]
    assert (first.sha256, first.size_bytes, first.engine) == (DIGEST, len(WASM), "wasmtime")
    assert daemon.routes == [DIGEST] * 2
    assert daemon.priorities == ["background"] * 2
    assert {thread for _, thread in seen} == {here}
    assert {progress.phase for progress, _ in seen} == {Phase.UPLOADING}
    done = [progress.done_bytes for progress, _ in seen]
    assert done == [0, 0, *range(PIECE_BYTES, len(WASM), PIECE_BYTES), len(WASM)]
    assert {progress.total_bytes for progress, _ in seen} == {len(WASM)}


def test_a_compile_sends_it_once_and_asks_by_digest_again(
    daemon: FakeDaemon, client: Any, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkiln._header_fields.Call.read", None)  # which reads all of it
    seen: list[Progress] = []
    for _ in range(2):
        assert client.compile(source, on_progress=seen.append).bytes == daemon.artifact
    assert asked(daemon) == ["Compile", "QueryUpload", "Upload", "Compile", "Compile"]
    assert all(request.sha256 == DIGEST for request in daemon.requests("Compile"))
    assert daemon.arrived_bytes == len(WASM)
    phases = [p.phase for p, after in zip(seen, [*seen[1:], None], strict=True) if p != after]
    assert list(dict.fromkeys(phases)) == [Phase.ASKING, Phase.UPLOADING, Phase.DOWNLOADING]


def test_the_real_limits(daemon: FakeDaemon, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    module = bytearray(8 * 1024 * 1024 + 1)
    assert client.load(module).size_bytes == len(module)
    assert asked(daemon) == ["QueryUpload", "Upload"]
    assert daemon.arrived_bytes == len(module)


@pytest.mark.parametrize("cut", [LOST, TAKEN_OVER], ids=["lost", "taken over"])
@pytest.mark.parametrize("max_attempts", [1, 3])
def test_an_upload_that_is_cut_goes_on_where_it_stood(
    daemon: FakeDaemon,
    make_client: Callable[..., Any],
    source: Any,
    cut: Refusal,
    max_attempts: int,
) -> None:
    client = make_client(daemon.address, timeout_s=30, max_attempts=max_attempts)
    daemon.upload_cuts.extend([(7 * PIECE_BYTES, cut)] * 10)
    seen: list[Progress] = []
    assert client.load(source, on_progress=seen.append).sha256 == DIGEST
    assert daemon.modules == {DIGEST: WASM}
    assert asked(daemon).count("Upload") == 11
    assert daemon.arrived_bytes == len(WASM)
    assert seen[-1] == Progress(Phase.UPLOADING, len(WASM), len(WASM))


def test_another_process_goes_on_with_it(daemon: FakeDaemon, client: Any) -> None:
    assert daemon.uploads is not None
    daemon.uploads[DIGEST] = bytearray(WASM[:60_000])
    seen: list[Progress] = []
    client.compile(WASM, on_progress=seen.append)
    assert daemon.arrived_bytes == len(WASM) - 60_000
    assert Progress(Phase.UPLOADING, 60_000, len(WASM)) in seen


def test_a_daemon_that_forgets_what_it_held_gets_everything_again(
    daemon: FakeDaemon, client: Any
) -> None:
    assert daemon.uploads is not None
    forgetting = Refusal(grpc.StatusCode.UNAVAILABLE, also=daemon.uploads.clear)
    daemon.upload_cuts.extend([(80_000, LOST), (10_000, forgetting)])
    assert client.load(WASM).sha256 == DIGEST
    assert daemon.arrived_bytes == 90_000 + len(WASM)


def test_attempts_without_progress_count(
    daemon: FakeDaemon, make_client: Callable[..., Any]
) -> None:
    client = make_client(daemon.address, timeout_s=10, max_attempts=3)
    assert daemon.uploads is not None
    forgetting = Refusal(grpc.StatusCode.UNAVAILABLE, also=daemon.uploads.clear)
    daemon.upload_cuts.extend([(5000, LOST), *[(4000, forgetting)] * 10])
    with pytest.raises(wasmkiln.ConnectionFailed):
        client.load(WASM)
    assert asked(daemon).count("Upload") == 4
    daemon.upload_cuts.clear()
    daemon.upload_cuts.extend(
        [(1, Refusal(TAKEN_OVER.code, TAKEN_OVER.reason, also=daemon.uploads.clear))] * 10
    )
    with pytest.raises(wasmkiln.UploadInterrupted) as caught:
        client.load(WASM)
    assert caught.value.code is grpc.StatusCode.ABORTED
    assert caught.value.metadata == {}


def test_what_a_refusal_says_is_not_lost_while_the_client_still_sends(
    daemon: FakeDaemon, client: Any
) -> None:
    large = {"size_bytes": "102408", "limit_bytes": "100"}
    for _ in range(20):
        daemon.refuse(
            Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL", retry_after_s=0),
        )
        daemon.upload_cuts.append(
            (1, Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MODULE_TOO_LARGE", metadata=large))
        )
        with pytest.raises(wasmkiln.ModuleTooLarge) as caught:
            client.load(WASM)
        assert caught.value.metadata == large
        assert caught.value.__context__ is None


def test_an_older_daemon_gets_one_message(daemon: FakeDaemon, client: Any, source: Any) -> None:
    daemon.uploads = None
    assert client.load(source).sha256 == DIGEST
    assert asked(daemon) == ["Load"]
    daemon.modules.clear()
    seen: list[Progress] = []
    assert client.compile(source, on_progress=seen.append).bytes == daemon.artifact
    assert [request.module for request in daemon.requests("Compile")] == [b"", WASM]
    assert [p.phase for p in seen[:2]] == [Phase.ASKING, Phase.UPLOADING]


def test_an_answer_that_was_lost_is_not_paid_for_twice(
    daemon: FakeDaemon, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = daemon._load

    def lose(request: Any, context: Any) -> Any:
        load(request, context)
        LOST.abort(context)

    monkeypatch.setattr(daemon, "_load", lose)
    assert client.compile(WASM).bytes == daemon.artifact
    assert asked(daemon) == ["Compile", "QueryUpload", "Upload", "QueryUpload", "Compile"]
    assert daemon.arrived_bytes == len(WASM)


def test_a_daemon_that_loses_a_module_gets_it_again(
    daemon: FakeDaemon, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, lost = daemon._load, Refusal(LOST.code, also=daemon.modules.clear)

    def end_once(request: Any, context: Any) -> Any:
        if not daemon.requests("Compile")[1:]:
            daemon.refuse(lost)
        return load(request, context)

    monkeypatch.setattr(daemon, "_load", end_once)
    assert client.compile(WASM).bytes == daemon.artifact
    once = ["Compile", "QueryUpload", "Upload", "Compile"]
    assert asked(daemon) == once * 2


def test_a_module_that_no_tier_keeps_comes_with_the_request(
    daemon: FakeDaemon, client: Any, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = daemon._load

    def forget(request: Any, context: Any) -> Any:
        answer = load(request, context)
        daemon.modules.clear()
        return answer

    monkeypatch.setattr(daemon, "_load", forget)
    assert client.compile(source).bytes == daemon.artifact
    assert asked(daemon) == ["Compile", "QueryUpload", "Upload", "Compile", "Compile"]
    assert [request.module for request in daemon.requests("Compile")] == [b"", b"", WASM]


def test_a_deadline_ends_an_upload(daemon: FakeDaemon, client: Any) -> None:
    daemon.upload_cuts.extend([(PIECE_BYTES, LOST)] * 1000)
    with pytest.raises(wasmkiln.WasmkilnError) as caught:
        client.load(WASM, timeout_s=0.5)
    assert isinstance(caught.value, (wasmkiln.DeadlineExceeded, wasmkiln.ConnectionFailed))
    assert asked(daemon).count("Upload") < 1000


def test_an_upload_that_hangs_ends_with_its_deadline_or_its_client(
    daemon: FakeDaemon, make_client: Callable[..., Any]
) -> None:
    client = make_client(daemon.address, timeout_s=30)
    daemon.hang.clear()
    with pytest.raises(wasmkiln.DeadlineExceeded, match=r"within 0\.3 s"):
        client.load(WASM, timeout_s=0.3)


@contextmanager
def held_upload(daemon: FakeDaemon) -> Iterator[threading.Event]:
    """The next upload stands still after its first piece; yield what says that it does."""
    stands, goes_on = threading.Event(), threading.Event()

    def stand() -> None:
        stands.set()
        goes_on.wait(10)

    daemon.upload_cuts.append((1, Refusal(LOST.code, also=stand)))
    yield stands
    goes_on.set()


def test_closing_ends_an_upload(daemon: FakeDaemon) -> None:
    client = wasmkiln.Client(daemon.address)
    with held_upload(daemon) as stands, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.load, WASM)
        assert stands.wait(5)
        client.close()
        with pytest.raises(wasmkiln.WasmkilnError) as caught:
            call.result(5)
    assert caught.value.code is grpc.StatusCode.CANCELLED


async def test_closing_ends_an_upload_of_a_task(daemon: FakeDaemon) -> None:
    client = wasmkiln.AsyncClient(daemon.address)
    with held_upload(daemon) as stands:
        task = asyncio.create_task(client.load(WASM))
        assert await asyncio.to_thread(stands.wait, 5)
        await client.close()
        with pytest.raises(wasmkiln.WasmkilnError) as caught:
            await task
    assert caught.value.code is grpc.StatusCode.CANCELLED


async def test_a_cancelled_task_ends_its_upload_and_the_thread_that_waits_for_it(
    daemon: FakeDaemon,
) -> None:
    async with wasmkiln.AsyncClient(daemon.address) as client:
        with held_upload(daemon) as stands:
            task = asyncio.create_task(client.load(WASM))
            assert await asyncio.to_thread(stands.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(daemon.cancelled.wait, 5)
            # The thread that waited for the upload has ended too: this waits for all of them.
            await asyncio.wait_for(asyncio.to_thread(client._pool.shutdown), 5)


async def test_an_upload_that_hangs_holds_no_thread_of_the_program(daemon: FakeDaemon) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    daemon.hang.clear()
    async with wasmkiln.AsyncClient(daemon.address) as client:
        task = asyncio.create_task(client.load(WASM))
        with ThreadPoolExecutor(1) as elsewhere:
            assert await loop.run_in_executor(elsewhere, daemon.entered.wait, 5)
        assert await asyncio.wait_for(asyncio.to_thread(int), 5) == 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_the_command_shows_how_far_an_upload_is(
    daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("large.wasm").write_bytes(bytes(9 * 2**20))
    shown, code = on_a_terminal(daemon, "load", "large.wasm")
    assert code == 0, shown
    assert "uploading large.wasm: 0 B of 9.0 MiB" in shown
    assert "uploading large.wasm: 4.5 MiB of 9.0 MiB" in shown


def test_another_digest_than_expected(daemon: FakeDaemon, client: Any) -> None:
    with pytest.raises(wasmkiln.DigestMismatch) as caught:
        client.load(WASM, expected_sha256="0" * 64)
    assert caught.value.metadata == {"expected_sha256": "0" * 64, "actual_sha256": DIGEST}
    assert not daemon.calls
    assert client.load(WASM, expected_sha256=DIGEST).sha256 == DIGEST


@pytest.mark.parametrize(
    "change", [lambda f: f.write_bytes(WASM[:-1] + b"!"), lambda f: f.write_bytes(b"")]
)
def test_a_file_that_changes_meanwhile_is_told(
    daemon: FakeDaemon, client: Any, tmp_path: Path, change: Callable[[Path], Any]
) -> None:
    file = tmp_path / "m.wasm"
    file.write_bytes(WASM)
    daemon.upload_cuts.append((5000, Refusal(LOST.code, also=lambda: change(file))))
    with pytest.raises(OSError, match="changed during a call: ask again"):
        client.load(file)


def test_an_error_in_the_callback_ends_the_upload(daemon: FakeDaemon, client: Any) -> None:
    def enough(progress: Progress) -> None:
        if progress.done_bytes >= 10_000:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        client.compile(WASM, on_progress=enough)
    assert daemon.cancelled.wait(3)
    assert DIGEST not in daemon.modules


# --- the way back --------------------------------------------------------------------------


def test_a_download_that_is_cut_goes_on_where_it_stood(
    daemon: FakeDaemon, make_client: Callable[..., Any]
) -> None:
    client = make_client(daemon.address, timeout_s=30, max_attempts=1)
    daemon.modules[DIGEST] = WASM
    daemon.chunk_bytes = 1000
    daemon.cuts.extend([LOST] * 10)
    seen: list[Progress] = []
    artifact = client.compile(WASM, on_progress=seen.append)
    assert artifact.bytes == daemon.artifact
    assert artifact.header.offset_bytes == 0
    offsets = [request.offset_bytes for request in daemon.requests("Compile")]
    assert offsets == [*range(0, 10_001, 1000)]
    assert daemon.sent_bytes == len(daemon.artifact)
    done = [p.done_bytes for p in seen if p.phase is Phase.DOWNLOADING]
    assert done == sorted(done)
    assert done[-1] == len(daemon.artifact)


def test_it_starts_again_where_the_daemon_has_another_artifact_or_is_older(
    daemon: FakeDaemon, client: Any
) -> None:
    daemon.modules[DIGEST] = WASM
    daemon.cuts.append(
        Refusal(LOST.code, also=lambda: setattr(daemon, "artifact", b"other" * 4000))
    )
    assert client.compile(WASM).bytes == b"other" * 4000
    assert daemon.requests("Compile")[1].offset_bytes == 5000
    daemon.resumes = False
    daemon.cuts.append(LOST)
    assert client.compile(WASM).bytes == b"other" * 4000
    # The next call of the same module asks for all of it.
    assert [r.offset_bytes for r in daemon.requests("Compile")] == [0, 5000, 0, 5000]


def test_what_was_compiled_for_a_call_that_is_cut_is_not_compiled_again(
    daemon: FakeDaemon, client: Any
) -> None:
    daemon.modules[DIGEST] = WASM
    daemon.cuts.append(LOST)
    assert client.compile(WASM, skip_cache_lookup=True).bytes == daemon.artifact
    asked = [(r.skip_cache_lookup, r.offset_bytes) for r in daemon.requests("Compile")]
    assert asked == [(True, 0), (False, 5000)]

    # Where no header came, nothing tells that it was compiled.
    daemon.calls.clear()
    daemon.refuse(LOST)
    client.compile(WASM, skip_cache_lookup=True)
    assert [r.skip_cache_lookup for r in daemon.requests("Compile")] == [True, True]


@pytest.mark.parametrize("origin", ["ORIGIN_REDIS", "ORIGIN_COMPILED"])
def test_what_was_compiled_for_a_call_may_be_lost(
    daemon: FakeDaemon, client: Any, origin: str
) -> None:
    older, newer = b"older" * 4000, daemon.artifact
    lose = Refusal(LOST.code, also=lambda: setattr(daemon, "artifact", older))
    daemon.modules[DIGEST] = WASM
    daemon.cuts.append(lose)

    def answer(messages: list[Any]) -> list[Any]:
        messages[0].header.origin = types.Origin.Value(origin)
        return messages

    daemon.tamper = answer
    assert client.compile(WASM, skip_cache_lookup=True).bytes == older != newer
    asked = [r.skip_cache_lookup for r in daemon.requests("Compile")]
    assert asked == [True, False] + [True] * (origin == "ORIGIN_REDIS")


def test_a_header_alone_is_nothing_to_go_on_from(daemon: FakeDaemon, client: Any) -> None:
    daemon.modules[DIGEST] = WASM
    daemon.cuts.append(LOST)
    daemon.tamper = lambda messages: messages if not daemon.cuts else messages[:1]
    assert client.compile(WASM).bytes == daemon.artifact
    assert [r.offset_bytes for r in daemon.requests("Compile")] == [0, 0]


def test_downloads_without_progress_end(
    daemon: FakeDaemon, make_client: Callable[..., Any]
) -> None:
    client = make_client(daemon.address, timeout_s=10, max_attempts=3)
    daemon.modules[DIGEST] = WASM
    daemon.resumes = False
    daemon.cuts.extend([LOST] * 10)
    with pytest.raises(wasmkiln.ConnectionFailed):
        client.compile(WASM)
    assert len(daemon.calls) == 4


def _lie(name: str, value: Any) -> Callable[[list[Any]], list[Any]]:
    def tamper(messages: list[Any]) -> list[Any]:
        header = messages[0].header
        if header.offset_bytes:
            setattr(header, name, value)
        return messages

    return tamper


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offset_bytes", 4999),
        ("offset_bytes", 2**64 - 1),
        ("artifact_sha256", "0" * 64),
        ("size_bytes", 12_001),
        ("inline_artifact", b"native"),
        ("module_sha256", "0" * 64),
    ],
)
def test_lies_about_the_rest_of_an_artifact(
    daemon: FakeDaemon, client: Any, name: str, value: Any
) -> None:
    daemon.modules[DIGEST] = WASM
    daemon.cuts.append(LOST)
    daemon.tamper = _lie(name, value)
    with pytest.raises(wasmkiln.ArtifactMismatch, match="asked for"):
        client.compile(WASM)


def test_the_whole_is_hashed(daemon: FakeDaemon, client: Any) -> None:
    daemon.modules[DIGEST] = WASM
    daemon.cuts.append(LOST)

    def tamper(messages: list[Any]) -> list[Any]:
        if messages[0].header.offset_bytes:
            messages[-1].chunk = b"X" + messages[-1].chunk[1:]
        return messages

    daemon.tamper = tamper
    with pytest.raises(wasmkiln.ArtifactMismatch, match="SHA-256"):
        client.compile(WASM)


def test_what_zstd_brought_counts_decoded(
    server: LyingServer, make_client: Callable[..., Any]
) -> None:
    client = make_client(server.address, timeout_s=30, compression=True)
    requests: list[modules.CompileRequest] = []

    def answer(wire: bytes, context: Any) -> Iterator[bytes]:
        requests.append(modules.CompileRequest.FromString(wire))
        if len(requests) == 1:
            messages = list(encoded.TRUE["chunks of seven bytes"].answer()(wire, context))
            yield from messages[: len(messages) // 2]
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        header = honest.header(requests[-1])
        header.offset_bytes = requests[-1].offset_bytes
        yield modules.CompileResponse(header=header).SerializeToString()
        yield from honest.chunks(honest.ARTIFACT[header.offset_bytes :])

    server.answers.clear()
    server.answers["Compile"] = answer
    assert client.compile(honest.WASM).bytes == honest.ARTIFACT
    assert 0 < requests[1].offset_bytes < len(honest.ARTIFACT)
    assert requests[1].artifact_sha256 == hashlib.sha256(honest.ARTIFACT).hexdigest()


@pytest.mark.parametrize(
    "code",
    [None, ErrorCodes.NO_ERROR, ErrorCodes.INTERNAL_ERROR, ErrorCodes.CANCEL],
    ids=["ended", "no error", "internal error", "cancel"],
)
def test_a_stream_that_is_cut_while_the_connection_goes_on(
    make_client: Callable[..., Any], code: ErrorCodes | None
) -> None:
    half = len(honest.ARTIFACT) // 2
    with resetting_server(half, code) as (address, asked):
        client = make_client(address, timeout_s=30)
        assert client.compile(honest.WASM).bytes == honest.ARTIFACT
        client.close()  # for which the server waits
    # gRPC drops messages that nobody has read when the stream ends: here all that came, or none.
    assert [each.offset_bytes for each in asked] in ([0, half], [0, 0])


# --- lies about uploads --------------------------------------------------------------------


def test_no_daemon_holds_more_than_there_is(
    server: LyingServer, make_client: Callable[..., Any]
) -> None:
    server.answers.clear()
    for held_bytes in (len(WASM) + 1, 2**64 - 1):
        answer = modules.QueryUploadResponse(held_bytes=held_bytes)
        server.say("QueryUpload", answer.SerializeToString())
        with pytest.raises(wasmkiln.UnexpectedAnswer, match="of a module of 102,408"):
            make_client(server.address, timeout_s=30).load(WASM)


def test_a_daemon_that_tells_of_less_and_less_is_left(
    server: LyingServer, make_client: Callable[..., Any]
) -> None:
    client = make_client(server.address, timeout_s=30, max_attempts=3)
    told = iter(range(90_000, 0, -1000))

    def answer(_request: bytes, _context: Any) -> Iterator[bytes]:
        yield modules.QueryUploadResponse(held_bytes=next(told)).SerializeToString()

    server.answers.clear()
    server.calls.clear()
    server.answers["QueryUpload"] = answer
    server.fail("Upload", grpc.StatusCode.UNAVAILABLE, "cut")
    with pytest.raises(wasmkiln.ConnectionFailed):
        client.load(WASM)
    assert server.calls.count("Upload") == 4
