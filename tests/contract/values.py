"""Artifacts and modules for tests of the tiers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import replace

from wasmkilnd import wire
from wasmkilnd.model import Artifact, CompileSpec, EngineIdentity, ExternType, Kind, Module

from tests.frames import to_frames

WASM = b"\0asm\x01\0\0\0"


def module(tag: int = 0, size_bytes: int = 100) -> Module:
    """A module of which each ``tag`` makes another."""
    wasm = (WASM + tag.to_bytes(4, "big")).ljust(size_bytes, b"\0")
    return Module(hashlib.sha256(wasm).hexdigest(), Kind.CORE_MODULE, wasm)


def artifact(
    tag: int = 0, size_bytes: int = 100, engine: str = "wasmtime", of: Module | None = None
) -> Artifact:
    """An artifact of which each ``tag`` and ``engine`` makes another."""
    payload = hashlib.shake_128(f"{tag}{engine}".encode()).digest(size_bytes)
    spec = CompileSpec(
        EngineIdentity(engine, "1.0", "1", "cranelift"),
        "x86_64-unknown-linux-gnu",
        "baseline",
        {"fuel": "false"},
        {},
        hashlib.sha256(f"{tag}{engine}".encode()).hexdigest(),
    )
    return Artifact(
        module_sha256=(of or module(tag)).sha256,
        kind=Kind.CORE_MODULE,
        spec=spec,
        sha256=hashlib.sha256(payload).hexdigest(),
        size_bytes=len(payload),
        frames=to_frames(payload),
        compile_time_s=0.25,
        imports=(ExternType("env", "log", "function", "(i32) -> ()"),),
        exports=(ExternType("", "größe", "memory", "pages 1.."),),
    )


def shrinking(tag: int = 0, size_bytes: int = 100_000) -> Artifact:
    """An artifact that is worth compressing."""
    payload = (b"native code %d " % tag * (1 + size_bytes // 10))[:size_bytes]
    return replace(
        artifact(tag),
        sha256=hashlib.sha256(payload).hexdigest(),
        size_bytes=size_bytes,
        frames=to_frames(payload),
    )


def payload_of(frames: Iterable[bytes]) -> bytes:
    """Join the payload inside ``frames``."""
    return b"".join(wire.payload_views(frames))


def same(one: Artifact | None, other: Artifact) -> bool:
    """Whether two artifacts are equal in all that they hold, however a tier keeps it."""
    if one and one.described and not same(replace(one.described, frames=one.frames), other):
        return False
    names = Artifact.__dataclass_fields__.keys() - {"described"}
    return one is not None and all(getattr(one, name) == getattr(other, name) for name in names)


async def arrived(one: Artifact) -> Artifact:
    """Return an artifact once all of its frames are here."""
    frames = tuple([await asyncio.shield(each) for each in one.coming])
    return replace(one, frames=one.frames or frames, coming=())
