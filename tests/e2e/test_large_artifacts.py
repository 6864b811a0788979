"""Artifacts that memory cannot hold, and downloads that go on where they were cut."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller, failure_of
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually
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
            client.evict(module_sha256=DIGEST, tier=tier)


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
