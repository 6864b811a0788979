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
from wasmkiln import ArtifactKey, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.fake_daemon import FakeDaemon, Refusal

WASM = b"\0asm\x01\0\0\0"
DIGEST = hashlib.sha256(WASM).hexdigest()


def test_load_sends_the_module_and_what_is_expected_of_it(daemon: FakeDaemon, client: Any) -> None:
    answer = client.load(WASM, expected_sha256=DIGEST, engine="wasmtime")
    assert (answer.sha256, answer.size_bytes, answer.already_loaded) == (DIGEST, 8, False)
    [request] = daemon.requests("Load")
    assert (request.module, request.expected_sha256, request.engine) == (WASM, DIGEST, "wasmtime")


def test_background_work_says_so_with_every_attempt(daemon: FakeDaemon, client: Any) -> None:
    client.compile(WASM, background=True)
    client.load(WASM, background=True)
    client.compile(WASM)
    client.load(WASM)
    client.stats()
    assert daemon.priorities == ["background"] * 3 + [""] * 3


@pytest.mark.parametrize("kind", [str, Path, bytes, bytearray, memoryview])
def test_a_module_is_a_path_or_its_bytes(client: Any, tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "m.wasm"
    path.write_bytes(WASM)
    source = kind(path) if kind in (str, Path) else kind(WASM)
    assert client.load(source).sha256 == DIGEST


def test_load_of_a_digest_is_a_mistake(daemon: FakeDaemon, client: Any) -> None:
    with pytest.raises(ValueError, match="digest has no bytes"):
        client.load(DIGEST)
    assert not daemon.calls


def test_a_missing_file_is_an_oserror(client: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.compile(tmp_path / "none.wasm")


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


def test_compile_of_a_known_module_uploads_nothing(daemon: FakeDaemon, client: Any) -> None:
    daemon.modules[DIGEST] = WASM
    assert client.compile(WASM).bytes == daemon.artifact
    [request] = daemon.requests("Compile")
    assert request.WhichOneof("source") == "sha256"


def test_compile_by_an_unknown_digest_raises(daemon: FakeDaemon, client: Any) -> None:
    with pytest.raises(wasmkiln.ModuleNotLoaded) as caught:
        client.compile(DIGEST)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert len(daemon.calls) == 1


def test_a_file_whose_name_looks_like_a_digest_is_a_file(
    daemon: FakeDaemon, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a" * 64).write_bytes(WASM)
    client.compile("a" * 64)
    assert daemon.requests("Compile")[0].sha256 == DIGEST


def test_omitting_the_artifact_and_skipping_the_cache(daemon: FakeDaemon, client: Any) -> None:
    artifact = client.compile(WASM, omit_artifact=True, skip_cache_lookup=True)
    assert artifact.bytes == b""
    assert artifact.header.size_bytes == len(daemon.artifact)
    assert all(r.omit_artifact and r.skip_cache_lookup for r in daemon.requests("Compile"))


def test_an_artifact_above_grpc_s_message_limit_arrives(daemon: FakeDaemon, client: Any) -> None:
    daemon.artifact, daemon.chunk_bytes = bytes(range(256)) * 40_000, 2**20
    assert client.compile(WASM).bytes == daemon.artifact


def test_progress_tells_every_phase(daemon: FakeDaemon, client: Any) -> None:
    seen: list[wasmkiln.Progress] = []
    client.compile(WASM, on_progress=seen.append)
    assert [p.phase for p in seen[:2]] == [Phase.ASKING, Phase.UPLOADING]
    downloads = seen[2:]
    assert {p.phase for p in downloads} == {Phase.DOWNLOADING}
    assert downloads[0].done_bytes == 0
    assert downloads[-1].done_bytes == downloads[-1].total_bytes == len(daemon.artifact)


def test_an_error_in_the_callback_reaches_the_caller(client: Any) -> None:
    def broken(progress: wasmkiln.Progress) -> None:
        if progress.phase is Phase.DOWNLOADING:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        client.compile(WASM, on_progress=broken)


class _Endless(list[Any]):
    """A header and a chunk every now and then, for ever."""

    def __iter__(self) -> Any:
        yield self[0]
        while True:
            time.sleep(0.02)
            yield self[1]


def test_a_call_that_nobody_reads_any_more_is_ended(daemon: FakeDaemon, client: Any) -> None:
    daemon.modules[DIGEST] = WASM
    daemon.header_changes = {"size_bytes": 2**30}
    daemon.tamper = _Endless

    def enough(progress: wasmkiln.Progress) -> None:
        if progress.done_bytes:
            raise LookupError

    with pytest.raises(LookupError) as caught:
        client.compile(WASM, on_progress=enough)
    assert daemon.cancelled.wait(3)
    assert caught.value  # its traceback holds the call, so that no destructor ended it


def _flip(messages: list[Any]) -> list[Any]:
    messages[-1].chunk = b"X" + messages[-1].chunk[1:]
    return messages


def _foreign(messages: list[Any]) -> list[Any]:
    messages[0].header.module_sha256 = "b" * 64
    return messages


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (_flip, "SHA-256"),
        (_foreign, "asked for an artifact of module"),
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


def test_stats_and_capabilities(client: Any) -> None:
    assert client.stats().tiers[0].hits == 3
    assert client.capabilities().engines[0].engine.id == "wasmer-1.1.0"


def test_find_missing_keeps_order_and_splits_what_is_too_much(
    daemon: FakeDaemon, client: Any
) -> None:
    digests = [f"{n:064x}" for n in range(10_001)]
    daemon.warm = {(digest, "") for digest in digests[1:-1]}
    key = ArtifactKey(module_sha256="f" * 64, engine="wasmer")
    missing = client.find_missing([*digests, key])
    assert [k.module_sha256 for k in missing] == [digests[0], digests[-1], "f" * 64]
    assert missing[-1].engine == "wasmer"
    assert [len(r.keys) for r in daemon.requests("FindMissing")] == [10_000, 2]


def test_find_missing_of_nothing_asks_nobody(daemon: FakeDaemon, client: Any) -> None:
    assert client.find_missing([]) == []
    assert not daemon.calls


def test_evict_names_one_scope(daemon: FakeDaemon, client: Any) -> None:
    assert client.evict(module_sha256=DIGEST).artifacts == 2
    client.evict(engine="wasmer-1.1.0", tier="redis")
    client.evict(everything=True, tier="memory")
    scopes = [(r.WhichOneof("scope"), r.tier) for r in daemon.requests("Evict")]
    assert scopes == [("module_sha256", 0), ("engine", 2), ("all", 1)]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"engine": "e", "everything": True},
        {"module_sha256": "short"},
        {"everything": True, "tier": "disk"},
    ],
)
def test_evict_refuses_what_is_ambiguous(
    daemon: FakeDaemon, client: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        client.evict(**arguments)
    assert not daemon.calls


def test_drain_sends_the_grace_that_was_given(daemon: FakeDaemon, client: Any) -> None:
    assert client.drain().calls == 3
    client.drain(0)
    client.drain(grace_s=2.5)
    sent = [(r.HasField("grace"), r.grace.ToMilliseconds()) for r in daemon.requests("Drain")]
    assert sent == [(False, 0), (True, 0), (True, 2500)]


@pytest.mark.parametrize("grace_s", [-1, float("nan"), float("inf"), 1e300])
def test_drain_refuses_what_is_no_duration(daemon: FakeDaemon, client: Any, grace_s: float) -> None:
    with pytest.raises(ValueError, match="grace_s"):
        client.drain(grace_s)
    assert not daemon.calls


def test_health_speaks_the_standard_protocol(daemon: FakeDaemon, client: Any) -> None:
    daemon.health.set("", health_pb2.HealthCheckResponse.SERVING)
    daemon.health.set("wasmkiln.v1.ModuleService", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert client.health() == "SERVING"
    assert client.health("wasmkiln.v1.ModuleService") == "NOT_SERVING"
    with pytest.raises(wasmkiln.WasmkilnError) as caught:
        client.health("nobody")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_a_deadline_ends_a_call_that_hangs(daemon: FakeDaemon, client: Any) -> None:
    daemon.hang.clear()
    start_s = time.monotonic()
    with pytest.raises(wasmkiln.DeadlineExceeded, match=r"within 0\.3 s") as caught:
        client.compile(WASM, timeout_s=0.3)
    assert time.monotonic() - start_s < 20
    assert daemon.address in caught.value.message
    assert len(daemon.calls) == 1


def test_a_deadline_that_passed_before_the_call(
    daemon: FakeDaemon, client: Any, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.wasm"
    os.mkfifo(slow)
    writer = threading.Timer(0.3, slow.write_bytes, (WASM,))
    writer.start()
    with pytest.raises(wasmkiln.DeadlineExceeded):
        client.load(slow, timeout_s=0.1)
    writer.join()
    assert not daemon.calls


def test_no_daemon_is_said_with_what_to_do(make_client: Callable[..., Any]) -> None:
    client = make_client("127.0.0.1:1", timeout_s=5)
    with pytest.raises(
        wasmkiln.ConnectionFailed, match=r"at 127\.0\.0\.1:1 \(connection refused\)"
    ) as caught:
        client.stats()
    assert "wasmkilnd serve" in caught.value.message
    assert "WASMKILN_ADDRESS" in caught.value.message


def test_retry_info_is_kept_to(daemon: FakeDaemon, client: Any, refusal: type[Refusal]) -> None:
    full = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL", retry_after_s=0.4)
    daemon.modules[DIGEST] = WASM
    daemon.refuse(full)
    start_s = time.monotonic()
    assert client.compile(WASM).bytes == daemon.artifact
    assert time.monotonic() - start_s >= 0.4
    assert len(daemon.calls) == 2


def test_retry_info_beyond_the_deadline_is_not_waited_for(
    daemon: FakeDaemon, client: Any, refusal: type[Refusal]
) -> None:
    daemon.refuse(
        refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL", retry_after_s=30)
    )
    start_s = time.monotonic()
    with pytest.raises(wasmkiln.CompileQueueFull) as caught:
        client.compile(WASM, timeout_s=25)
    assert caught.value.retry_after_s == 30
    assert time.monotonic() - start_s < 20


def test_a_draining_daemon_is_tried_again_up_to_max_attempts(
    daemon: FakeDaemon, make_client: Callable[..., Any], refusal: type[Refusal]
) -> None:
    draining = refusal(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    daemon.refuse(draining, draining)
    assert make_client(daemon.address).stats().version == "9.9.9"
    daemon.refuse(draining, draining)
    with pytest.raises(wasmkiln.ServerDraining):
        make_client(daemon.address, max_attempts=2).stats()
    assert len(daemon.calls) == 3 + 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "MODULE_INVALID"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_MEMORY_LIMIT"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "COMPILE_TIMEOUT"),
        (grpc.StatusCode.INTERNAL, "COMPILER_CRASHED"),
    ],
)
def test_nothing_else_is_tried_again(
    daemon: FakeDaemon, client: Any, refusal: type[Refusal], code: grpc.StatusCode, reason: str
) -> None:
    daemon.refuse(refusal(code, reason))
    with pytest.raises(wasmkiln.WasmkilnError) as caught:
        client.load(WASM)
    assert caught.value.reason == reason
    assert len(daemon.calls) == 1


def test_a_stream_that_broke_starts_again_from_nothing(
    daemon: FakeDaemon, client: Any, refusal: type[Refusal]
) -> None:
    daemon.modules[DIGEST] = WASM
    daemon.cuts.append(refusal(grpc.StatusCode.UNAVAILABLE))
    assert client.compile(WASM).bytes == daemon.artifact
    assert len(daemon.calls) == 2


def test_no_grpc_error_hangs_on_what_is_raised(
    daemon: FakeDaemon, client: Any, refusal: type[Refusal]
) -> None:
    daemon.refuse(refusal(grpc.StatusCode.INVALID_ARGUMENT, "NOT_WASM"))
    with pytest.raises(wasmkiln.NotWasm) as caught:
        client.load(b"text")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_closed_client_says_so(daemon: FakeDaemon, make_client: Callable[..., Any]) -> None:
    client = make_client(daemon.address)
    client.stats()
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.stats()
