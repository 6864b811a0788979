"""Artifacts as Redis has them: a daemon passes the pieces on, and memory serves every caller."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard
from wasmkiln import AsyncClient
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.servers.redis_server import binary_of, redis_server

MEMORY, REDIS, HOST_STORE = (
    types_pb2.ORIGIN_MEMORY,
    types_pb2.ORIGIN_REDIS,
    types_pb2.ORIGIN_HOST_STORE,
)
# Its artifact has several pieces, and shrinks.
MODULE = wasm.many_functions(10_000, tag=7)
DIGEST = wasm.digest(MODULE)


@pytest.fixture(scope="module")
def finder(
    engines: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Daemon, bytes]]:
    """A daemon that finds the artifact of another in Redis, and the artifact."""
    folder = tmp_path_factory.mktemp("fleet")
    states = [fresh_state(folder / f"d{number}", engines=(ENGINE,)) for number in range(2)]
    with redis_server(binary_of("valkey"), folder / "server") as valkey:
        environ = {"WASMKILN_REDIS_URL": valkey.url}
        with Daemon(states[0], environ=environ) as one, one.client() as client:
            made = client.compile(MODULE, engine=ENGINE)
            eventually(lambda: not client.stats().pending_writes, "its writes are done")
        environ |= {"WASMKILN_HOST_STORE_BYTES": "256MiB"}
        with Daemon(states[1], environ=environ) as two:
            yield two, made.bytes


@pytest.fixture
def other(finder: tuple[Daemon, bytes]) -> tuple[Daemon, bytes]:
    """The same, and the artifact is in Redis alone."""
    forget(finder[0])
    return finder


def forget(daemon: Daemon) -> None:
    """Leave the artifact in Redis alone."""
    with daemon.client() as client:
        for tier in ("host_store", "memory"):
            client.evict(module_sha256=DIGEST, tier=tier)


def ask(caller: Caller, *encodings: str) -> tuple[Any, bytes]:
    """Return the header of the artifact, and the bytes of all chunks as they came."""
    request = pb.CompileRequest(sha256=DIGEST, engine=ENGINE, accept_encodings=encodings)
    first, *rest = list(caller.stub.Compile(request, timeout=60))
    return first.header, b"".join(message.chunk for message in rest)


def unpacked(stream: bytes, size_bytes: int) -> bytes:
    reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    return bytes(reader.read(size_bytes + 1))


def test_who_accepts_zstd_gets_the_stored_pieces_and_memory_serves_both_kinds(
    other: tuple[Daemon, bytes],
) -> None:
    daemon, made = other
    assert len(made) > 2 * 512 * 1024
    with Caller(daemon) as caller:
        header, stream = ask(caller, "br", "zstd")
        assert (header.origin, header.content_encoding) == (REDIS, "zstd")
        assert len(stream) < len(made) * 0.9
        assert unpacked(stream, len(made)) == made
        assert header.size_bytes == len(made)
        assert header.artifact_sha256 == hashlib.sha256(made).hexdigest()
        # As it came, for those who accept that.
        header, again = ask(caller, "zstd")
        assert (header.origin, header.content_encoding, again) == (MEMORY, "zstd", stream)
        # The bytes, for those who don't; from now on for all.
        for encodings in ((), ("br",), ("zstd",)):
            header, stream = ask(caller, *encodings)
            assert (header.origin, header.content_encoding, stream) == (MEMORY, "", made)
        forget(daemon)
        header, stream = ask(caller)
        assert (header.origin, header.content_encoding, stream) == (REDIS, "", made)


def test_the_host_store_gets_the_bytes(other: tuple[Daemon, bytes]) -> None:
    daemon, made = other
    with Caller(daemon) as caller, daemon.client() as client:
        header, _ = ask(caller, "zstd")
        assert (header.origin, header.content_encoding) == (REDIS, "zstd")

        def from_file(*encodings: str) -> bool:
            client.evict(module_sha256=DIGEST, tier="memory")
            header, stream = ask(caller, *encodings)
            assert (header.content_encoding, stream) == ("", made)
            return bool(header.origin == HOST_STORE)

        # Until the file is written, the daemon has the artifact in the queue for it.
        eventually(from_file, "the file is written")
        assert from_file("zstd")


def test_both_kinds_at_once_get_what_they_accept(other: tuple[Daemon, bytes]) -> None:
    daemon, made = other

    def call(number: int) -> None:
        with Caller(daemon) as caller:
            header, stream = ask(caller, *(("zstd",) if number % 2 else ()))
        if header.content_encoding:
            assert number % 2
            stream = unpacked(stream, len(made))
        assert stream == made

    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            forget(daemon)
            list(threads.map(call, range(16)))


def test_both_clients_take_them_and_check_the_signature(
    other: tuple[Daemon, bytes], tmp_path: Path
) -> None:
    daemon, made = other
    options: dict[str, Any] = {
        "compression": True,
        "trusted_keys": daemon.state_dir / "keys/trusted",
    }

    async def elsewhere() -> Any:
        async with AsyncClient(daemon.address, **options) as client:
            return await client.compile(DIGEST, engine=ENGINE)

    with daemon.client(**options) as client:
        for get in (
            lambda: client.compile(DIGEST, engine=ENGINE),
            lambda: asyncio.run(elsewhere()),
        ):
            forget(daemon)
            found = get()
            assert found.header.origin == REDIS
            assert found.bytes == made
            assert not found.header.content_encoding
            assert found.verify()
            saved = found.save(tmp_path / "saved")
            assert saved.read_bytes() == made
