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
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from wasmkiln import Artifact as SavedArtifact
from wasmkiln.trusted_keys import TrustedKeys
from wasmkiln.v1.module_service_pb2 import CompileResponse
from wasmkilnd import wire
from wasmkilnd.cache.fleet.lease import Lease, State
from wasmkilnd.cache.fleet.strike_record import write_record
from wasmkilnd.cache.redis.tier import DEFAULT_PREFIX, RedisTier
from wasmkilnd.cache.value.marks import Mark, Marks, write_mark
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.fingerprint import fingerprint
from wasmkilnd.model import (
    Artifact,
    CompileSpec,
    EngineIdentity,
    ExternType,
    Kind,
    Module,
    Origin,
    Strike,
)
from wasmkilnd.requests import Served
from wasmkilnd.rpc.wire.headers import Headers
from wasmkilnd.signing.keys import Keys, PrivateKey
from wasmkilnd.signing.sealer import Sealer

from tests.doubles.notes import Notes
from tests.doubles.shelf import Shelf

NOW_S = 1_700_000_000.25
KEY = PrivateKey.parse(hashlib.sha256(b"the key of wasmkiln's samples").hexdigest())
SEALER = Sealer(Keys(KEY, TrustedKeys([KEY.public])), "0.0.samples", now=lambda: NOW_S)
NAMES = KeyNames(DEFAULT_PREFIX)

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
        frames=wire.to_frames(payload),
        compile_time_s=0.25,
        imports=(ExternType("env", "log", "function", "(i32) -> ()"),),
        exports=(ExternType("", "größe", "memory", "pages 1.."),),
    )


# A payload of one piece, as it is; and one of two pieces, compressed.
SMALL_MODULE = _module(b"\0asm\x01\0\0\0" + bytes(range(100)))
LARGE_MODULE = _module(b"\0asm\x01\0\0\0" + b"a module " * 60_000)
SMALL = SEALER.seal(_artifact(SMALL_MODULE, hashlib.shake_128(b"native code").digest(300)))
LARGE = SEALER.seal(_artifact(LARGE_MODULE, b"native code " * 60_000))

STRIKE = Strike(SMALL.key, ENGINE.id, "COMPILE_TIMEOUT", "it took “too” long", 3, 600.0)
STRIKE_TTL_S = 1000
MARK = Mark(evicted_ms=1_700_000_000_001, released_ms=1_700_000_000_002)
MARK_OF_ALL = Mark(engines={ENGINE.id: 1_700_000_000_003})


def stored() -> dict[bytes, bytes]:
    """Return what is in Redis, by name, when everything was stored."""
    shelf = Shelf()

    async def store() -> None:
        tier = RedisTier(shelf, SEALER, Notes())
        for artifact, module in ((SMALL, SMALL_MODULE), (LARGE, LARGE_MODULE)):
            await tier.put(artifact)
            await tier.put_module(module)
        await tier.close()

    asyncio.run(store())
    lease, strike = NAMES.lease(SMALL.key), NAMES.strike(STRIKE.key)
    marks = {NAMES.mark(SMALL.module_sha256): MARK, NAMES.mark(""): MARK_OF_ALL}
    return {
        **shelf.values,
        lease: a_lease().written(lease, SEALER.stamp),
        strike: write_record(STRIKE, STRIKE_TTL_S, int(NOW_S * 1000), SEALER.stamp),
        **{name: write_mark(name, mark, SEALER.stamp) for name, mark in marks.items()},
    }


def a_lease() -> Lease:
    """Return a lease that was renewed once and is about to end."""
    with mock.patch("secrets.token_bytes", lambda count: bytes(range(count))):
        return Lease.new(10_000, NOW_S).next(State.STORING)


def marks() -> Marks:
    """Return the marks of a daemon at the time of the samples."""
    return Marks(lambda: NOW_S)


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
