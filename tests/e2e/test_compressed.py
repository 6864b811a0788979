"""Artifacts as Redis has them: a daemon passes the pieces on, and memory serves every caller."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from wasmkiln import AsyncClient
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.test_cache import HOST_STORE, MEMORY, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

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
            settled(client)
        with Daemon(states[1], environ=environ) as two:
            yield two, made.bytes


def forget(daemon: Daemon, *, file: bool = True) -> None:
    """Leave the artifact in Redis alone, or in a file."""
    with daemon.client() as client:
        if file:
            client.evict(DIGEST, tier="host_store")
        client.evict(DIGEST, tier="memory")


def ask(daemon: Daemon, *encodings: str) -> tuple[Any, bytes]:
    """Return the header of the artifact, and the bytes of all chunks as they came."""
    request = pb.CompileRequest(sha256=DIGEST, engine=ENGINE, accept_encodings=encodings)
    with Caller(daemon) as caller:
        first, *rest = list(caller.stub.Compile(request, timeout=60))
    return first.header, b"".join(message.chunk for message in rest)


def test_who_accepts_zstd_gets_the_stored_pieces_and_nearer_tiers_serve_both_kinds(
    finder: tuple[Daemon, bytes],
) -> None:
    daemon, made = finder
    assert len(made) > 2 * 512 * 1024
    header, stream = ask(daemon, "br", "zstd")
    assert (header.origin, header.content_encoding) == (REDIS, "zstd")
    assert len(stream) < len(made) * 0.9
    reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    assert reader.read(len(made) + 1) == made
    assert header.size_bytes == len(made)
    assert header.artifact_sha256 == hashlib.sha256(made).hexdigest()
    # As it came, for those who accept that.
    header, again = ask(daemon, "zstd")
    assert (header.origin, header.content_encoding, again) == (MEMORY, "zstd", stream)
    # The bytes, for those who don't; from now on for all.
    for encodings in ((), ("br",), ("zstd",)):
        header, stream = ask(daemon, *encodings)
        assert (header.origin, header.content_encoding, stream) == (MEMORY, "", made)

    def from_file(*encodings: str) -> bool:
        forget(daemon, file=False)
        header, stream = ask(daemon, *encodings)
        assert (header.content_encoding, stream) == ("", made)
        return bool(header.origin == HOST_STORE)

    # Until the file is written, the daemon has the artifact in the queue for it.
    eventually(from_file, "the file is not written")
    assert from_file("zstd")
    forget(daemon)
    header, stream = ask(daemon)
    assert (header.origin, header.content_encoding, stream) == (REDIS, "", made)


def test_both_clients_take_them_and_check_the_signature(
    finder: tuple[Daemon, bytes], tmp_path: Path
) -> None:
    daemon, made = finder
    trusted = daemon.state_dir / "keys/trusted"

    async def elsewhere() -> Any:
        async with AsyncClient(daemon.address, compression=True, trusted_keys=trusted) as client:
            return await client.compile(DIGEST, engine=ENGINE)

    with daemon.client(compression=True, trusted_keys=trusted) as client:
        for get in (
            lambda: client.compile(DIGEST, engine=ENGINE),
            lambda: asyncio.run(elsewhere()),
        ):
            forget(daemon)
            found = get()
            assert (found.header.origin, found.bytes) == (REDIS, made)
            assert not found.header.content_encoding
            assert found.verify()
            assert found.save(tmp_path / "saved").read_bytes() == made
