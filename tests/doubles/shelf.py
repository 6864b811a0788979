"""Stored values in a dictionary, for tests that need thousands of them and no server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wasmkilnd.cache.value import (
    ValueRejected,
    open_value,
    unpacked_frames,
    with_frames,
    written,
)
from wasmkilnd.model import Artifact, CacheKey, Module, RejectionCause
from wasmkilnd.signing.sealer import Sealer


def stored(what: Artifact | Module, sealer: Sealer) -> dict[bytes, bytes]:
    """Return the value that a daemon with ``sealer`` stores, by name."""
    return {name_of(what): b"".join(written(what, sealer))}


def name_of(what: Artifact | Module) -> bytes:
    """Return under which name ``what`` is stored."""
    if isinstance(what, Module):
        return f"wasm:3:module:{{{what.sha256}}}".encode()
    of, key = f"wasm:3:compiled:{{{what.module_sha256}}}", what.key
    return f"{of}:{key.engine_id}:{key.fingerprint}".encode()


def read(
    values: Mapping[bytes, bytes],
    key: CacheKey | str,
    sealer: Sealer,
    accept: frozenset[str] = frozenset(),
) -> tuple[Artifact | Module | None, list[str]]:
    """Return what a daemon with ``sealer`` finds in ``values``, and the causes of rejections."""
    [value] = [value for name, value in values.items() if _is_of(name, key)] or [b""]
    try:
        return opened(value, key, sealer, accept), []
    except ValueRejected as rejected:
        return None, [rejected.cause.value]


def opened(
    value: bytes, key: CacheKey | str, sealer: Sealer, accept: frozenset[str] = frozenset()
) -> Artifact | Module:
    """Return what a stored value is. Raise ValueRejected unless a daemon would serve it."""
    found = open_value(value, key, sealer, accept)
    if found.stored_bytes != len(value):
        raise ValueRejected(RejectionCause.FORMAT, "it has another length")
    parts = [value[one.offset : one.offset + one.stored_bytes] for one in found.frames]
    return with_frames(found, [found.ready(index, part) for index, part in enumerate(parts)])


def decoded(artifact: Artifact) -> Artifact:
    """Return ``artifact`` with the bytes themselves in its frames."""
    if not artifact.encoding:
        return artifact
    return replace(artifact, frames=tuple(unpacked_frames(artifact)), encoding="")


def _is_of(name: bytes, key: CacheKey | str) -> bool:
    if isinstance(key, str):
        return name == f"wasm:3:module:{{{key}}}".encode()
    of = f"wasm:3:compiled:{{{key.module_sha256}}}:".encode()
    return name.startswith(of) and name.endswith(f":{key.fingerprint}".encode())
