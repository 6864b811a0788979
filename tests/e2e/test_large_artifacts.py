"""Artifacts that memory cannot hold, and downloads that go on where they were cut."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.types_pb2 import ORIGIN_OBJECT_STORE

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller, failure_of
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import anonymous_memory_of, eventually
from tests.e2e.programs import Installed
from tests.e2e.test_cache import HOST_STORE, MEMORY, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

KIB = 1024
FRAME = 512 * KIB
# Its artifact has several frames, and shrinks.
MODULE = wasm.many_functions(10_000, tag=11)
DIGEST = wasm.digest(MODULE)


class Got(NamedTuple):
    """An answer: its header, and the bytes of all chunks."""

    header: Any
    bytes: bytes


def ask(daemon: Daemon, digest: str = DIGEST, **fields: Any) -> Got:
    request = pb.CompileRequest(sha256=digest, engine=ENGINE, **fields)
    with Caller(daemon) as caller:
        first, *rest = list(caller.stub.Compile(request, timeout=60))
    assert all(len(message.chunk) <= 1024 * KIB for message in rest)
    return Got(first.header, b"".join(message.chunk for message in rest))


class Fleet(NamedTuple):
    """A daemon that keeps large artifacts in memory, one that does not, and the artifact."""

    usual: Daemon
    lean: Daemon
    whole: bytes


@pytest.fixture(scope="module")
def fleet(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    states = [fresh_state(folder / f"d{number}", engines=(ENGINE,)) for number in range(2)]
    with redis_server(binary_of("valkey"), folder / "server") as valkey:
        environ = {"WASMKILN_REDIS_URL": valkey.url}
        with (
            Daemon(states[0], environ=environ) as usual,
            Daemon(states[1], ["--memory-bytes", "0"], environ) as lean,
        ):
            with usual.client() as client:
                whole = client.compile(MODULE, engine=ENGINE).bytes
                settled(client)
            yield Fleet(usual, lean, whole)


def written(daemon: Daemon) -> None:
    """Wait until no file waits to be written: what waits is served like a hit in memory."""
    pending = "host_store_pending_writes"
    eventually(lambda: not daemon.metric(pending), "a file waits to be written")


def forget(daemon: Daemon, *tiers: Any) -> None:
    with daemon.client() as client:
        for tier in tiers:
            client.evict(DIGEST, tier=tier)


def in_memory(fleet: Fleet) -> Daemon:
    ask(fleet.usual)
    return fleet.usual


def packed_in_memory(fleet: Fleet) -> Daemon:
    forget(fleet.usual, "memory", "host_store")
    assert ask(fleet.usual, accept_encodings=["zstd"]).header.content_encoding == "zstd"
    return fleet.usual


def in_a_file(fleet: Fleet) -> Daemon:
    ask(fleet.usual)
    written(fleet.usual)
    forget(fleet.usual, "memory")
    return fleet.usual


def in_a_file_alone(fleet: Fleet) -> Daemon:
    ask(fleet.lean)
    written(fleet.lean)
    return fleet.lean


def in_redis(fleet: Fleet) -> Daemon:
    forget(fleet.usual, "memory", "host_store")
    return fleet.usual


@pytest.mark.parametrize(
    ("where", "origin"),
    [
        (in_memory, MEMORY),
        (packed_in_memory, MEMORY),
        (in_a_file, HOST_STORE),
        (in_a_file_alone, HOST_STORE),
        (in_redis, REDIS),
    ],
)
def test_a_download_goes_on_from_each_tier(
    fleet: Fleet, where: Callable[[Fleet], Daemon], origin: int
) -> None:
    size, sha256 = len(fleet.whole), hashlib.sha256(fleet.whole).hexdigest()
    assert size > 2 * FRAME
    for offset in (1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME + 7, size - 1):
        daemon = where(fleet)
        got = ask(
            *(daemon,),
            offset_bytes=offset,
            artifact_sha256=sha256,
            accept_encodings=["zstd"],
            inline_limit_bytes=64 * KIB,
        )
        assert (got.header.origin, got.header.offset_bytes) == (origin, offset)
        assert (got.header.content_encoding, got.header.size_bytes) == ("", size)
        assert got.bytes == fleet.whole[offset:]


@pytest.mark.parametrize(
    ("beyond", "sha256"), [(0, ""), (1, ""), (1 << 60, ""), (-1, "0" * 64), (-10_000, "f" * 64)]
)
def test_who_has_a_part_of_something_else_starts_over(
    fleet: Fleet, beyond: int, sha256: str
) -> None:
    daemon = in_memory(fleet)
    got = ask(
        *(daemon,),
        offset_bytes=len(fleet.whole) + beyond,
        artifact_sha256=sha256 or hashlib.sha256(fleet.whole).hexdigest(),
    )
    assert (got.header.offset_bytes, got.bytes) == (0, fleet.whole)


def test_who_takes_a_file_or_no_artifact_gets_no_part(fleet: Fleet) -> None:
    known: dict[str, Any] = {
        "offset_bytes": 5,
        "artifact_sha256": hashlib.sha256(fleet.whole).hexdigest(),
    }
    for field in ("omit_artifact", "accept_host_file"):
        got = ask(in_memory(fleet), **known | {field: True})
        assert (got.header.offset_bytes, got.bytes) == (0, b"")
    assert Path(got.header.host_file.path).read_bytes() == fleet.whole


@pytest.mark.parametrize(
    "fields",
    [
        {"offset_bytes": 5},
        {"artifact_sha256": "0" * 64},
        {"offset_bytes": 5, "artifact_sha256": "0" * 63},
        {"offset_bytes": 5, "artifact_sha256": "F" * 64},
    ],
)
def test_one_without_the_other_is_refused(fleet: Fleet, fields: dict[str, Any]) -> None:
    with Caller(fleet.usual) as caller:
        call = caller.stub.Compile(pb.CompileRequest(sha256=DIGEST, **fields), timeout=60)
        code, reason, _, _ = failure_of(call)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


def test_a_file_that_was_changed_is_not_sent(fleet: Fleet) -> None:
    """As with those that memory could hold: it is removed, and Redis has the artifact."""
    lean = in_a_file_alone(fleet)
    for change in (b"never what was signed", b""):
        path = Path(ask(lean, accept_host_file=True).header.host_file.path)
        with path.open("r+b") as file:
            file.seek(700_000)
            if change:
                file.write(change)
            else:
                file.truncate()
        got = ask(lean)
        assert (got.header.origin, got.bytes) == (REDIS, fleet.whole)
        eventually(lambda: ask(lean).header.origin == HOST_STORE, "the file is not written anew")


# Large ones


MIB = 1024 * KIB
# More than memory holds in these tests.
LARGE = 120 * MIB
LIMITS = ["--max-module-bytes", "128MiB", "--memory-bytes", "64MiB", "--caller-timeout-s", "120"]


class Shared(NamedTuple):
    """Where a daemon has put a large artifact, by tier, and the artifact."""

    folder: Path
    flags: dict[str, list[str]]
    module: str
    sha256: str
    size: int


def told(call: Any) -> tuple[Any, str, int]:
    """Return an answer's header, and digest and size of its bytes, of which none is kept."""
    digest, size, first = hashlib.sha256(), 0, next(call)
    for message in call:
        digest.update(message.chunk)
        size += len(message.chunk)
    return first.header, digest.hexdigest(), size


@pytest.fixture(scope="module")
def shared(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("large")
    (folder / "objects").mkdir()
    with redis_server(binary_of("valkey"), folder / "server") as valkey:
        flags = {
            "host_store": ["--host-store-dir", str(folder / "files")],
            "redis": ["--redis-url", valkey.url],
            "object_store": ["--object-store-url", f"file://{folder}/objects"],
        }
        every = [*LIMITS, *(flag for tier in flags.values() for flag in tier)]
        module = wasm.with_data(LARGE, 1)
        with Daemon(fresh_state(folder / "maker", engines=(ENGINE,)), every) as maker:
            with Caller(maker) as caller:
                header, sha256, size = told(caller.compile(module, omit_artifact=False))
            assert (header.artifact_sha256, header.size_bytes) == (sha256, size)
            for tier in flags:
                pending = f"{tier}_pending_writes"
                eventually(lambda p=pending: not maker.metric(p), "a write waits", 120)  # type: ignore[misc]
                assert maker.metric(f"{tier}_dropped_writes_total") == 0
            assert maker.metric("tier_stores_total", tier="memory", outcome="too_large") >= 1
        yield Shared(folder, flags, wasm.digest(module), sha256, size)


@pytest.mark.parametrize("tier", ["host_store", "redis", "object_store"])
def test_another_daemon_gets_equal_bytes_from_each_tier(shared: Shared, tier: str) -> None:
    others = {"host_store": ["--host-store-bytes", "0"], "redis": ["--redis-url", "none"]}
    flags = [flag for name, off in others.items() if name != tier for flag in off]
    state = fresh_state(shared.folder / tier, engines=(ENGINE,))
    with Daemon(state, [*LIMITS, *shared.flags[tier], *flags]) as daemon, Caller(daemon) as caller:
        header, sha256, size = told(caller.compile(shared.module, omit_artifact=False))
        origins = {"host_store": HOST_STORE, "redis": REDIS, "object_store": ORIGIN_OBJECT_STORE}
        assert (header.origin, sha256, size) == (origins[tier], shared.sha256, shared.size)
        assert daemon.metric("served_total", origin="compiled") == 0


def test_a_daemon_that_sends_a_file_holds_a_few_frames_of_it(shared: Shared) -> None:
    """Three callers at once, each of which is cut half way, and goes on at another daemon."""
    state = fresh_state(shared.folder / "sender", engines=(ENGINE,))
    flags = [*LIMITS, *shared.flags["host_store"], "--redis-url", "none"]
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            held = anonymous_memory_of(daemon.pid), int(daemon.metric("send_pinned_bytes"))
            most[:] = [max(pair) for pair in zip(most, held, strict=True)]

    def download(_: int) -> str:
        digest, size = hashlib.sha256(), 0
        with Caller(daemon) as caller:
            call = caller.compile(shared.module, omit_artifact=False)
            for message in itertools.islice(call, 1, 1 + LARGE // FRAME // 2):
                digest.update(message.chunk)
                size += len(message.chunk)
        with Caller(daemon) as caller:
            request = pb.CompileRequest(sha256=shared.module, engine=ENGINE)
            request.offset_bytes, request.artifact_sha256 = size, shared.sha256
            first, *rest = caller.stub.Compile(request, timeout=120)
            assert (first.header.origin, first.header.offset_bytes) == (HOST_STORE, size)
            for message in rest:
                digest.update(message.chunk)
        return digest.hexdigest()

    with Daemon(state, flags) as daemon:
        idle = anonymous_memory_of(daemon.pid)
        most = [idle, 0]
        with ThreadPoolExecutor(4) as threads:
            watching = threads.submit(watch)
            try:
                assert set(threads.map(download, range(3))) == {shared.sha256}
            finally:
                done.set()
            watching.result()
    print(f"{(most[0] - idle) / MIB:.1f} MiB above idle, {most[1] / FRAME:.0f} frames")
    assert most[0] - idle < 32 * MIB
    assert most[1] <= 3 * FRAME
