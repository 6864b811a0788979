"""Both clients against one suite: every test runs with Client and with AsyncClient."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import wasmkiln
from grpc_health.v1 import health_pb2
from wasmkiln import ArtifactKey, Phase, errors
from wasmkiln.rpc import pause_s

from tests.unit.client.fake_daemon import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.fake_daemon import FakeDaemon

WASM = b"\0asm\x01\0\0\0"
DIGEST = hashlib.sha256(WASM).hexdigest()
OTHER = "ab" * 32


def full(retry_after_s: float) -> Refusal:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    return Refusal(code, "COMPILE_QUEUE_FULL", retry_after_s=retry_after_s)


@pytest.mark.parametrize("kind", [str, Path, bytes, bytearray, memoryview])
def test_load_sends_the_module_and_what_is_expected_of_it(
    daemon: FakeDaemon, client: Any, tmp_path: Path, kind: Any
) -> None:
    path = tmp_path / "m.wasm"
    path.write_bytes(WASM)
    source = kind(path) if kind in (str, Path) else kind(WASM)
    answer = client.load(source, expected_sha256=DIGEST, engine="wasmtime")
    assert (answer.sha256, answer.size_bytes, answer.already_loaded) == (DIGEST, 8, False)
    [request] = daemon.requests("Load")
    assert (request.module, request.expected_sha256, request.engine) == (WASM, DIGEST, "wasmtime")


def test_what_a_call_is_about_and_how_urgent_it_is_stands_in_its_metadata(
    daemon: FakeDaemon, client: Any
) -> None:
    client.compile(WASM, background=True)
    client.load(WASM, background=True)
    client.compile(WASM)
    client.load(WASM)
    for call in (client.pin, client.unpin):
        call(OTHER)
    client.evict(OTHER)
    assert daemon.routes == [DIGEST] * 5 + [OTHER] * 3
    client.stats()
    client.evict(everything=True)
    client.find_missing([DIGEST])
    assert daemon.routes[8:] == ["", "", ""]
    assert daemon.priorities == ["background"] * 3 + [""] * 8


def test_compile_uploads_only_after_the_digest_was_unknown(daemon: FakeDaemon, client: Any) -> None:
    artifact = client.compile(WASM, engine="wasmtime", target="t", cpu="c", settings={"a": "b"})
    assert artifact.bytes == daemon.artifact
    assert artifact.header.module_sha256 == DIGEST
    by_digest, upload = daemon.requests("Compile")
    assert (by_digest.sha256, by_digest.module) == (DIGEST, b"")
    assert (upload.sha256, upload.module) == ("", WASM)
    for request in (by_digest, upload):
        assert (request.engine, request.target, request.cpu) == ("wasmtime", "t", "c")
        assert dict(request.settings) == {"a": "b"}
        assert not request.skip_cache_lookup
        assert not request.omit_artifact
    artifact = client.compile(WASM, omit_artifact=True, skip_cache_lookup=True)
    assert (artifact.bytes, artifact.header.size_bytes) == (b"", len(daemon.artifact))
    [request] = daemon.requests("Compile")[2:]
    assert request.WhichOneof("source") == "sha256", "a known module is not uploaded"
    assert request.omit_artifact
    assert request.skip_cache_lookup
    with pytest.raises(wasmkiln.ModuleNotLoaded) as caught:
        client.compile(OTHER)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert len(daemon.calls) == 4


def test_settings_may_be_truth_values_and_numbers(daemon: FakeDaemon, client: Any) -> None:
    given = {"consume_fuel": True, "gc_support": False, "max_wasm_stack": 2**20, "strategy": "x"}
    settings = {**given, "consume_fuel": "true", "gc_support": "false", "max_wasm_stack": "1048576"}
    assert client.compile(WASM, settings=given).header.changed_settings == settings
    assert dict(daemon.requests("Compile")[0].settings) == settings


def test_a_file_whose_name_looks_like_a_digest_is_a_file(
    daemon: FakeDaemon, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a" * 64).write_bytes(WASM)
    client.compile("a" * 64)
    assert daemon.requests("Compile")[0].sha256 == DIGEST


def test_an_artifact_above_grpc_s_message_limit_arrives(daemon: FakeDaemon, client: Any) -> None:
    daemon.artifact, daemon.chunk_bytes = bytes(range(256)) * 40_000, 2**20
    seen: list[wasmkiln.Progress] = []
    assert client.compile(WASM, on_progress=seen.append).bytes == daemon.artifact
    assert [p.phase for p in seen[:2]] == [Phase.ASKING, Phase.UPLOADING]
    downloads = seen[2:]
    assert {p.phase for p in downloads} == {Phase.DOWNLOADING}
    assert downloads[0].done_bytes == 0
    assert downloads[-1].done_bytes == downloads[-1].total_bytes == len(daemon.artifact)


class _Endless(list[Any]):
    """A header and a chunk every now and then, for ever."""

    def __iter__(self) -> Any:
        yield self[0]
        while True:
            time.sleep(0.02)
            yield self[1]


def test_an_error_in_the_callback_reaches_the_caller_and_ends_the_call(
    daemon: FakeDaemon, client: Any
) -> None:
    daemon.modules[DIGEST] = WASM
    daemon.header_changes = {"size_bytes": 2**30}
    daemon.tamper = _Endless

    def enough(progress: wasmkiln.Progress) -> None:
        if progress.done_bytes:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        client.compile(WASM, on_progress=enough)
    assert daemon.cancelled.wait(3)
    assert caught.value  # its traceback holds the call, so that no destructor ended it


def _flip(messages: list[Any]) -> list[Any]:
    messages[-1].chunk = b"X" + messages[-1].chunk[1:]
    return messages


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (_flip, "SHA-256"),
        (lambda m: m[:-1], "ended after"),
        (lambda m: [*m, m[-1]], "longer than"),
        (lambda m: m[1:], "before its header"),
        (lambda m: [m[0], *m], "two headers"),
        (lambda m: [], "ended without a header"),
    ],
)
def test_a_stream_that_is_not_what_its_header_says_is_refused(
    daemon: FakeDaemon, client: Any, tamper: Callable[[list[Any]], list[Any]], says: str
) -> None:
    daemon.tamper = tamper
    with pytest.raises(wasmkiln.ArtifactMismatch, match=says) as caught:
        client.compile(WASM)
    assert caught.value.code is grpc.StatusCode.DATA_LOSS
    assert len(daemon.requests("Compile")) == 2  # by digest and upload, and no retry


def test_find_missing_keeps_order_and_splits_what_is_too_much(
    daemon: FakeDaemon, client: Any
) -> None:
    assert client.find_missing([]) == []
    assert not daemon.calls
    digests = [f"{n:064x}" for n in range(10_001)]
    daemon.warm = {(digest, "") for digest in digests[1:-1]}
    key = ArtifactKey(module_sha256="f" * 64, engine="wasmer")
    missing = client.find_missing([*digests, key])
    assert [k.module_sha256 for k in missing] == [digests[0], digests[-1], "f" * 64]
    assert missing[-1].engine == "wasmer"
    assert [len(r.keys) for r in daemon.requests("FindMissing")] == [10_000, 2]
    daemon.calls.clear()
    settings = {f"setting_{number}": "x" * 200 for number in range(10)}
    large = [
        ArtifactKey(module_sha256=digest, engine="e", settings=settings if n % 2 else {})
        for n, digest in enumerate(digests[:3_000])
    ]
    assert client.find_missing(large) == large
    batches = daemon.requests("FindMissing")
    assert max(batch.ByteSize() for batch in batches) <= 2 * 1024 * 1024
    assert len(batches) < 6


def test_evict_names_one_scope(daemon: FakeDaemon, client: Any) -> None:
    assert client.evict(DIGEST).artifacts == 2
    client.evict(engine="wasmer-1.1.0", tier="redis")
    client.evict(everything=True, tier="memory")
    scopes = [(r.WhichOneof("scope"), r.tier) for r in daemon.requests("Evict")]
    assert scopes == [("module_sha256", 0), ("engine", 2), ("all", 1)]


@pytest.mark.parametrize("method", ["evict", "pin", "unpin", "release"])
def test_calls_of_operators_take_files_bytes_and_digests(
    daemon: FakeDaemon, client: Any, tmp_path: Path, method: str
) -> None:
    path = tmp_path / "m.wasm"
    path.write_bytes(WASM)
    call = getattr(client, method)
    for source in (path, str(path), WASM, bytearray(WASM), DIGEST):
        call(source)
        call(module=source)
    call(module_sha256=DIGEST)  # as before
    assert [request.module_sha256 for _, request in daemon.calls] == [DIGEST] * 11
    for wrong, kind in ((tmp_path / "none.wasm", FileNotFoundError), (7, TypeError)):
        with pytest.raises(kind):
            call(wrong)
    with pytest.raises(ValueError, match="64 lowercase"):
        call(module_sha256=str(path))
    assert len(daemon.calls) == 11


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("evict", {}),
        ("evict", {"engine": "e", "everything": True}),
        ("evict", {"module_sha256": "short"}),
        ("evict", {"everything": True, "tier": "disk"}),
        *(("drain", {"grace_s": grace_s}) for grace_s in (-1, float("nan"), float("inf"), 1e300)),
        ("load", {"source": DIGEST}),
        ("compile", {"source": "\0"}),
    ],
)
def test_arguments_that_are_refused(
    daemon: FakeDaemon, client: Any, tmp_path: Path, method: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        getattr(client, method)(**arguments)
    for source, kind in (("none.wasm", FileNotFoundError), (7, TypeError)):
        with pytest.raises(kind):
            client.compile(source)
    large = tmp_path / "large.wasm"
    large.touch()
    os.truncate(large, 2**30 + 1)
    with pytest.raises(errors.ModuleTooLarge, match="the highest limit of any daemon"):
        client.compile(large)
    for wrong in ({"consume_fuel": 1.5}, {"consume_fuel": None}, {7: "true"}):
        with pytest.raises(TypeError, match=r"cannot use the setting .*, not "):
            client.compile(WASM, settings=wrong)
    with pytest.raises(TypeError, match="settings is a dict"):
        client.module(WASM, settings="consume_fuel=true")
    with pytest.raises(TypeError, match="one string"):
        client.find_missing(DIGEST)
    assert not daemon.calls


def test_drain_sends_the_grace_that_was_given(daemon: FakeDaemon, client: Any) -> None:
    assert client.drain().calls == 3
    client.drain(0)
    client.drain(grace_s=2.5)
    sent = [(r.HasField("grace"), r.grace.ToMilliseconds()) for r in daemon.requests("Drain")]
    assert sent == [(False, 0), (True, 0), (True, 2500)]


def test_health_speaks_the_standard_protocol(daemon: FakeDaemon, client: Any) -> None:
    daemon.health.set("", health_pb2.HealthCheckResponse.SERVING)
    daemon.health.set("wasmkiln.v1.ModuleService", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert client.health() == "SERVING"
    assert client.health("wasmkiln.v1.ModuleService") == "NOT_SERVING"
    with pytest.raises(wasmkiln.WasmkilnError) as caught:
        client.health("nobody")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


# --- deadlines and attempts -----------------------------------------------------------------


def test_a_deadline_ends_a_call_that_hangs(daemon: FakeDaemon, client: Any, tmp_path: Path) -> None:
    slow = tmp_path / "slow.wasm"
    os.mkfifo(slow)
    writer = threading.Timer(0.3, slow.write_bytes, (WASM,))
    writer.start()
    with pytest.raises(wasmkiln.DeadlineExceeded):
        client.load(slow, timeout_s=0.1)
    writer.join()
    assert not daemon.calls, "it passed before the call"
    daemon.hang.clear()
    start_s = time.monotonic()
    with pytest.raises(wasmkiln.DeadlineExceeded, match=r"within 0\.3 s") as caught:
        client.compile(WASM, timeout_s=0.3)
    assert time.monotonic() - start_s < 20
    assert daemon.address in caught.value.message
    assert len(daemon.calls) <= 1, "it may pass while the client connects"


def test_retry_info_is_kept_to(daemon: FakeDaemon, client: Any) -> None:
    daemon.refuse(full(0.4))
    start_s = time.monotonic()
    assert client.stats().version == "9.9.9"
    assert time.monotonic() - start_s >= 0.4
    daemon.refuse(full(30))
    with pytest.raises(wasmkiln.CompileQueueFull) as caught:
        client.stats(timeout_s=25)
    assert caught.value.retry_after_s == 30
    assert time.monotonic() - start_s < 20, "no pause beyond the deadline"


def test_a_draining_daemon_is_tried_again_up_to_max_attempts(
    daemon: FakeDaemon, make_client: Callable[..., Any]
) -> None:
    draining = Refusal(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    daemon.refuse(draining, draining)
    assert make_client(daemon.address).stats().version == "9.9.9"
    daemon.refuse(draining, draining)
    with pytest.raises(wasmkiln.ServerDraining):
        make_client(daemon.address, max_attempts=2).stats()
    assert len(daemon.calls) == 3 + 2


def test_a_call_for_code_is_tried_until_its_deadline(
    daemon: FakeDaemon, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkiln.rpc._LONGEST_PAUSE_S", 0.01)
    draining = Refusal(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    calls: dict[str, Callable[..., Any]] = {
        "Load": lambda **options: client.load(WASM, **options),
        "Compile": lambda **options: client.compile(WASM, **options),
        "FindMissing": lambda **options: client.find_missing([DIGEST], **options),
    }
    for method, call in calls.items():
        daemon.calls.clear()
        daemon.refuse(*[draining] * 20)
        call()
        assert [made for made, _ in daemon.calls][:21] == [method] * 21
        daemon.refuse(*[draining] * 100_000)
        with pytest.raises(wasmkiln.ServerDraining):
            call(timeout_s=0.5)
        daemon.refusals.clear()
    daemon.calls.clear()
    daemon.refuse(*[draining] * 20)
    with pytest.raises(wasmkiln.ServerDraining):
        client.stats()
    assert len(daemon.calls) == 3


def test_a_cut_stream_is_tried_again(daemon: FakeDaemon, client: Any) -> None:
    """By a daemon that ends, or by a proxy; an error that names another cause is not."""
    reset = "Received RST_STREAM with error code 2"
    daemon.refuse(
        Refusal(grpc.StatusCode.CANCELLED, message="CANCELLED"),
        Refusal(grpc.StatusCode.INTERNAL, message=reset),
    )
    client.compile(WASM)
    for other in ("INTERNAL", ""):
        daemon.refuse(Refusal(grpc.StatusCode.INTERNAL, other, message=reset if other else "no"))
        with pytest.raises(wasmkiln.WasmkilnError) as caught:
            client.compile(WASM)
        assert caught.value.code is grpc.StatusCode.INTERNAL
        assert not daemon.refusals


def test_nobody_answers_says_more_than_a_deadline(make_client: Callable[..., Any]) -> None:
    for timeout_s in (0.2, 0.9):
        with pytest.raises(
            wasmkiln.ConnectionFailed, match=r"no daemon answers at 127\.0\.0\.1:1 "
        ):
            make_client("127.0.0.1:1").compile(WASM, timeout_s=timeout_s)


def test_a_refusal_says_more_than_a_deadline(
    daemon: FakeDaemon, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt hangs until the deadline."""
    daemon.refuse(Refusal(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING", also=daemon.hang.clear))
    with pytest.raises(wasmkiln.ServerDraining):
        client.compile(WASM, timeout_s=1)


def test_nothing_else_is_tried_again(daemon: FakeDaemon, client: Any) -> None:
    for reason, kind in errors.BY_REASON.items():
        if kind is not errors.UploadInterrupted and kind.CODE is not grpc.StatusCode.UNAVAILABLE:
            daemon.calls.clear()
            daemon.refuse(Refusal(kind.CODE, reason))
            with pytest.raises(kind) as caught:
                client.load(WASM)
            assert caught.value.reason == reason
            assert len(daemon.calls) == 1
            # No error of gRPC hangs on what is raised.
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_how_long_a_pause_is(monkeypatch: pytest.MonkeyPatch, chance: float) -> None:
    monkeypatch.setattr("wasmkiln.rpc.random.random", lambda: chance)
    jitter = 0.5 + 0.5 * chance
    backoff = [jitter * pause for pause in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0)]
    lost = errors.ConnectionFailed("lost")
    assert [pause_s(lost, n) for n in range(1, 9)] == pytest.approx(backoff)
    assert pause_s(lost, 5_000) == pytest.approx(2.0 * jitter)
    for told_s in (3.0, 0.0, -1.0):  # never shortened, and never at once
        told = errors.CompileQueueFull("full", retry_after_s=told_s)
        pauses = [max(0, told_s) + pause for pause in backoff]
        assert [pause_s(told, n) for n in range(1, 9)] == pytest.approx(pauses)
    assert pause_s(errors.UploadInterrupted("taken over"), 1) == pytest.approx(10 * backoff[0])
    assert pause_s(errors.CompileQueueFull("without saying for how long"), 1) is None


def test_a_closed_client_says_so(daemon: FakeDaemon, make_client: Callable[..., Any]) -> None:
    client = make_client(daemon.address)
    client.stats()
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.stats()
