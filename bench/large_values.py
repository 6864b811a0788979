"""Writes and reads a 75 MB artifact again and again, until its standard input ends.

``python -m bench.large_values SOCKET split|whole ARTIFACT_FILE``: through the Redis tier, or as
a single value with its digest in front. Prints the seconds of each write and of each read as
one JSON line.
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
from typing import Any

from redis.asyncio import Redis
from wasmkiln.trusted_keys import TrustedKeys
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.model import Artifact, CompileSpec, EngineIdentity, Kind
from wasmkilnd.signing.keys import Keys, PrivateKey
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wire import to_frames

SIZE_BYTES = 75_000_000
_TIMEOUT_S = 30.0

Round = tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]


class _Nobody:
    """A recorder that takes note of nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def payload_from(file: Path) -> bytes:
    """Return 75 MB that compress as a real artifact does: one, over and over."""
    real = file.read_bytes()
    return (real * (SIZE_BYTES // len(real) + 1))[:SIZE_BYTES]


def split(socket: str, payload: bytes) -> Round:
    """Return how the tier writes and reads."""
    key = PrivateKey.generate()
    sealer = Sealer(Keys(key, TrustedKeys([key.public])), "bench")
    tier = RedisTier(
        connect(f"unix://{socket}", timeout_s=_TIMEOUT_S), sealer, _Nobody(), timeout_s=_TIMEOUT_S
    )
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
        await tier.put(artifact)

    async def read() -> None:
        found = await tier.get(artifact.key)
        if found is None or found.size_bytes != len(payload):
            raise ValueError("the tier did not find what it stored")

    return write, read


def whole(socket: str, payload: bytes) -> Round:
    """Return how one would without cutting and compressing."""
    client = Redis(unix_socket_path=socket, socket_timeout=_TIMEOUT_S)

    async def write() -> None:
        digest = await asyncio.to_thread(lambda: hashlib.sha256(payload).digest())
        await client.set("whole", digest + payload)

    async def read() -> None:
        value = await client.get("whole")
        assert isinstance(value, bytes)
        if await asyncio.to_thread(lambda: hashlib.sha256(value[32:]).digest()) != value[:32]:
            raise ValueError("the value is damaged")
        await asyncio.to_thread(to_frames, value[32:])

    return write, read


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
        round_of = {"split": split, "whole": whole}[how](socket, payload)
        print("begun", flush=True)
        return await _repeat(round_of, ended)

    print(json.dumps(asyncio.run(run())), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
