"""Writes and reads a 75 MB artifact again and again, until its standard input ends.

``python -m bench.large_values SOCKET store|ranges|whole ARTIFACT_FILE``: through the daemon's
store, or with redis-py alone, a plain SET of the bytes as they are. What was set is read in ranges
as large as the store's, one after the other, or by one GET, and hashed. Prints the seconds of each
write and of each read as one JSON line.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from redis.asyncio import Redis
from wasmkiln.attestation import TrustedKeys
from wasmkilnd.flights import Allowance
from wasmkilnd.model import Artifact, CompileSpec, EngineIdentity, EvictScope, Kind, to_frames
from wasmkilnd.signing.keys import Keys, PrivateKey
from wasmkilnd.signing.sealer import Sealer

from bench.scale.stores import redis_store

SIZE_BYTES = 75_000_000
RANGE_BYTES = 960 * 1024
"""As much of a value RedisStore reads at once."""
_TIMEOUT_S = 30.0

Round = tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]


def payload_from(file: Path) -> bytes:
    """Return 75 MB that compress as a real artifact does: one, over and over."""
    real = file.read_bytes()
    return (real * (SIZE_BYTES // len(real) + 1))[:SIZE_BYTES]


def store(socket: str, payload: bytes) -> Round:
    """Return how a daemon writes, a value that is not there, and reads."""
    key = PrivateKey.generate()
    sealer = Sealer(Keys(key, TrustedKeys([key.public])), "bench")
    redis = redis_store(f"unix://{socket}", sealer)
    spec = CompileSpec(
        EngineIdentity("bench", "1", "1", "none"), "none", "native", {}, {}, "0" * 64
    )
    artifact = sealer.seal(
        Artifact(
            "0" * 64,
            Kind.CORE_MODULE,
            spec,
            hashlib.sha256(payload).hexdigest(),
            len(payload),
            to_frames(payload),
            1.0,
        )
    )

    async def write() -> None:
        await redis.evict(EvictScope(artifact.module_sha256))
        await redis.put(artifact)

    async def read() -> None:
        found = await redis.get(artifact.key, Allowance())
        if found is None or found.size_bytes != len(payload):
            raise ValueError("the store did not find what it stored")

    return write, read


def ranges(socket: str, payload: bytes) -> Round:
    """Return how one would without packing, reading no more at once than the store does."""
    client = Redis(unix_socket_path=socket, socket_timeout=_TIMEOUT_S)
    digest = hashlib.sha256(payload).digest()

    async def read() -> None:
        parts = [
            await client.getrange("plain", start, min(start + RANGE_BYTES, SIZE_BYTES) - 1)
            for start in range(0, SIZE_BYTES, RANGE_BYTES)
        ]
        await _check(b"".join(map(_bytes, parts)), digest)

    return _plain_write(client, payload), read


def whole(socket: str, payload: bytes) -> Round:
    """Return how one would without packing and without ranges."""
    client = Redis(unix_socket_path=socket, socket_timeout=_TIMEOUT_S)
    digest = hashlib.sha256(payload).digest()

    async def read() -> None:
        await _check(_bytes(await client.get("plain")), digest)

    return _plain_write(client, payload), read


def _plain_write(client: Redis, payload: bytes) -> Callable[[], Awaitable[None]]:
    async def write() -> None:
        await client.set("plain", payload)

    return write


async def _check(value: bytes, digest: bytes) -> None:
    """Do the least that every reader does: compare the digest, and cut bytes into messages."""
    if await asyncio.to_thread(lambda: hashlib.sha256(value).digest()) != digest:
        raise ValueError("the value is damaged")
    await asyncio.to_thread(to_frames, value)


def _bytes(reply: bytes | str | None) -> bytes:
    if not isinstance(reply, bytes):
        raise ValueError("Redis does not hold what was set")
    return reply


async def _repeat(write_and_read: Round, ended: threading.Event) -> dict[str, list[float]]:
    series: dict[str, list[float]] = {"write": [], "read": []}
    while not ended.is_set():
        for name, action in zip(series, write_and_read, strict=True):
            began = time.perf_counter()
            await action()
            series[name].append(time.perf_counter() - began)
    return series


def main(socket: str, how: str, file: str) -> None:
    """Go on until standard input ends."""
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    payload = payload_from(Path(file))

    async def run() -> dict[str, list[float]]:
        round_of = {"store": store, "ranges": ranges, "whole": whole}[how](socket, payload)
        print("begun", flush=True)
        return await _repeat(round_of, ended)

    print(json.dumps(asyncio.run(run())), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
