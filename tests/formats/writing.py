"""Writes the samples; the same version always writes the same bytes.

``python -m tests.formats.writing FILE`` writes a sample of every stored value to FILE.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from wasmkiln import Artifact as SavedArtifact
from wasmkiln.attestation import TrustedKeys
from wasmkiln.v1.module_service_pb2 import CompileResponse
from wasmkilnd import wire
from wasmkilnd.compile import Served
from wasmkilnd.model import (
    Artifact,
    CompileSpec,
    EngineIdentity,
    ExternType,
    Kind,
    Module,
    Origin,
    Strike,
    fingerprint,
)
from wasmkilnd.redis.records import Strikes
from wasmkilnd.rpc.messages import Headers
from wasmkilnd.signing.keys import Keys, PrivateKey
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.waits.budgets import WaitBudget

from tests.doubles import shelf
from tests.frames import to_frames

NOW_S = 1_700_000_000.25
KEY = PrivateKey.parse(hashlib.sha256(b"the key of wasmkiln's samples").hexdigest())
SEALER = Sealer(Keys(KEY, TrustedKeys([KEY.public])), "0.0.samples", now=lambda: NOW_S)
PREFIX = "wasm:"

ENGINE = EngineIdentity("wasmtime", "50.0.1", "50", "cranelift")
SETTINGS = {"fuel": "false", "max_wasm_stack": "524288"}
SPEC = CompileSpec(
    ENGINE,
    "x86_64-unknown-linux-gnu",
    "baseline",
    SETTINGS,
    {"fuel": "false"},
    fingerprint(ENGINE, "x86_64-unknown-linux-gnu", "baseline", (), SETTINGS),
)


def _module(wasm: bytes) -> Module:
    return Module(hashlib.sha256(wasm).hexdigest(), Kind.CORE_MODULE, wasm)


def _artifact(of: Module, payload: bytes) -> Artifact:
    return Artifact(
        module_sha256=of.sha256,
        kind=Kind.CORE_MODULE,
        spec=SPEC,
        sha256=hashlib.sha256(payload).hexdigest(),
        size_bytes=len(payload),
        frames=to_frames(payload),
        compile_time_s=0.25,
        imports=(ExternType("env", "log", "function", "(i32) -> ()"),),
        exports=(ExternType("", "größe", "memory", "pages 1.."),),
    )


# A payload of one frame, as it is; and one of two frames, compressed.
SMALL_MODULE = _module(b"\0asm\x01\0\0\0" + bytes(range(100)))
LARGE_MODULE = _module(b"\0asm\x01\0\0\0" + b"a module " * 60_000)
SMALL = SEALER.seal(_artifact(SMALL_MODULE, hashlib.shake_128(b"native code").digest(300)))
LARGE = SEALER.seal(_artifact(LARGE_MODULE, b"native code " * 60_000))

STRIKE = Strike(SMALL.key, ENGINE.id, "COMPILE_TIMEOUT", "it took “too” long", 3, 600.0)
STRIKE_TTL_S = 1000


class Redis:
    """A server and the link to it: a dictionary of strings that live for ``STRIKE_TTL_S``."""

    def __init__(self, values: Mapping[bytes, bytes] | None = None) -> None:
        self.values = dict(values or {})
        self.prefix = PREFIX
        self.is_down = False
        self.timeout_s = 1.0

    @property
    def link(self) -> Redis:
        """Return itself: what asks for a store asks only for its link and prefix."""
        return self

    async def run(self, *commands: Any, timeout_s: float | None = None) -> list[Any]:
        """Run commands, as RedisLink."""
        return [self._reply(*command) for command in commands]

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Return all keys, whose names match what ends in an asterisk."""
        yield [name for name in self.values if name.startswith(pattern.removesuffix(b"*"))]

    def _reply(self, command: str, *arguments: Any) -> Any:
        name, *rest = arguments
        value = self.values.get(name, b"")
        match command:
            case "GETRANGE":
                first, last = rest
                begin = max(0, len(value) + first) if first < 0 else first
                return value[begin : len(value) + 1 + last if last < 0 else last + 1]
            case "SET":
                self.values[name] = rest[0]
                return b"OK"
            case "UNLINK":
                return int(bool(self.values.pop(name, b"")))
        raise ValueError(command)


def stored() -> dict[bytes, bytes]:
    """Return what is in Redis, by name, when everything was stored."""
    redis = Redis()
    with (
        # What makes one value differ from the next of the same artifact.
        mock.patch("secrets.token_hex", lambda count: "5e" * count),
        mock.patch("time.time", return_value=NOW_S),
    ):
        for what in (SMALL, SMALL_MODULE, LARGE, LARGE_MODULE):
            redis.values |= shelf.stored(what, SEALER)
        strikes = Strikes(redis, PREFIX, SEALER)  # type: ignore[arg-type]
        asyncio.run(strikes.put(STRIKE, STRIKE_TTL_S, WaitBudget()))
    return redis.values


def saved(artifact: Artifact) -> dict[str, bytes]:
    """Return the files that a caller saves of ``artifact``, by name."""
    payload = b"".join(wire.payload_views(artifact.frames))
    answer = Headers().answer(Served(artifact, Origin.REDIS, 0.5))
    header = CompileResponse.FromString(answer.first).header
    with tempfile.TemporaryDirectory() as folder:
        SavedArtifact(payload, header).save(Path(folder) / "artifact")
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def write_samples(stored: Mapping[bytes, bytes], saved: Mapping[str, bytes]) -> str:
    """Return a sample of every stored value as text."""
    return json.dumps(
        {
            "redis": {name.decode(): _text(value) for name, value in stored.items()},
            "files": {name: _text(content) for name, content in saved.items()},
        },
        indent=1,
        sort_keys=True,
    )


def read_samples(file: Path) -> tuple[dict[bytes, bytes], dict[str, bytes]]:
    """Return what is in Redis, and the files of a saved artifact, as ``file`` has them."""
    said = json.loads(file.read_text())
    redis = {name.encode(): base64.b64decode(value) for name, value in said["redis"].items()}
    return redis, {name: base64.b64decode(content) for name, content in said["files"].items()}


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(write_samples(stored(), saved(SMALL)) + "\n")
