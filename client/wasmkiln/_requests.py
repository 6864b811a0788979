"""Requests of the API, built from what callers give: a path, bytes or a digest for a module."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln._settings import MAX_TIMEOUT_S
from wasmkiln.errors import ModuleTooLarge
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1.types_pb2 import ArtifactKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Source = str | os.PathLike[str] | bytes | bytearray | memoryview

# The daemon refuses more keys in one call, and more bytes; see FindMissing in module_service.proto.
FIND_MISSING_KEYS = 10_000
FIND_MISSING_BYTES = 2 * 1024 * 1024
# A daemon puts no larger artifact into its header's message; see module_service.proto.
_INLINE_LIMIT_BYTES = 65_536
# The highest limit that a daemon can be configured to have. A larger file is not read.
MAX_MODULE_BYTES = 1024**3

_TIERS: dict[str | None, admin.Tier] = {
    None: admin.TIER_UNSPECIFIED,
    "memory": admin.TIER_MEMORY,
    "redis": admin.TIER_REDIS,
    "host_store": admin.TIER_HOST_STORE,
}

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class IdentifiedModule:
    """A module's SHA-256 in lowercase hex, and its bytes (None where only the digest is known)."""

    sha256: str
    module: bytes | None


def is_digest(text: str) -> bool:
    """Return whether a text is 64 lowercase hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def identify(source: Source) -> IdentifiedModule:
    """Read and hash a module. Take a digest as it is.

    A text of 64 lowercase hexadecimal digits is a digest, unless a file has that name. Raise
    OSError when a path cannot be read, ModuleTooLarge above 1 GiB, which no daemon accepts,
    and TypeError for another kind of source.
    """
    if isinstance(source, str) and is_digest(source) and not Path(source).exists():
        return IdentifiedModule(source, None)
    if isinstance(source, (bytes, bytearray, memoryview)):
        module = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        module = _read(Path(source))
    else:
        raise TypeError(
            f"a module is a path, bytes or a SHA-256 digest, not {type(source).__name__}"
        )
    return IdentifiedModule(hashlib.sha256(module).hexdigest(), module)


def _read(path: Path) -> bytes:
    """Read a file or a pipe. Stop at 1 GiB: /dev/zero has no end."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        module = file.read(MAX_MODULE_BYTES + 1) if size_bytes <= MAX_MODULE_BYTES else b""
    if size_bytes > MAX_MODULE_BYTES or len(module) > MAX_MODULE_BYTES:
        raise ModuleTooLarge(
            f"{path} is larger than {MAX_MODULE_BYTES:,} bytes, the highest limit of any daemon"
        )
    return module


def compile_request(
    *,
    engine: str | None,
    target: str | None,
    cpu: str | None,
    settings: Mapping[str, str] | None,
    skip_cache_lookup: bool = False,
    omit_artifact: bool = False,
    accept_fast: bool = False,
) -> modules.CompileRequest:
    """Return a CompileRequest without a source, which the caller adds.

    Raise TypeError for a setting whose value is not a string.
    """
    for name, value in (settings or {}).items():
        if not isinstance(value, str):
            raise TypeError(f"the value of setting {name!r} has to be a string, such as 'true'")
    return modules.CompileRequest(
        engine=engine or "",
        target=target or "",
        cpu=cpu or "",
        settings=dict(settings or {}),
        skip_cache_lookup=skip_cache_lookup,
        omit_artifact=omit_artifact,
        inline_limit_bytes=_INLINE_LIMIT_BYTES,
        accept_fast=accept_fast,
    )


def artifact_keys(keys: Iterable[ArtifactKey | str]) -> list[ArtifactKey]:
    """Return the keys; a digest becomes the key of the default engine's artifact.

    Raise TypeError for a single string, whose characters would be taken for keys.
    """
    if isinstance(keys, str):
        raise TypeError("find_missing takes a list of keys or digests, not one string")
    return [ArtifactKey(module_sha256=key) if isinstance(key, str) else key for key in keys]


def in_batches(
    keys: Sequence[ArtifactKey], *, by_module: bool = False
) -> Iterator[modules.FindMissingRequest]:
    """Yield FindMissing requests, each with no more keys and bytes than the daemon allows.

    With `by_module` each is about one module, since another daemon may have the next one.
    """
    if by_module:
        for _, group in itertools.groupby(keys, key=lambda key: key.module_sha256):
            yield from in_batches(list(group))
        return
    # In a request, each key has its tag and its length, too.
    largest = max((key.ByteSize() + 4 for key in keys), default=1)
    at_once = max(1, min(FIND_MISSING_KEYS, FIND_MISSING_BYTES // largest))
    for start in range(0, len(keys), at_once):
        yield modules.FindMissingRequest(keys=keys[start : start + at_once])


def evict_request(
    *, module_sha256: str | None, engine: str | None, everything: bool, tier: str | None
) -> admin.EvictRequest:
    """Return an EvictRequest. Raise ValueError unless there is one scope, and a known tier."""
    if (module_sha256 is not None) + (engine is not None) + everything != 1:
        raise ValueError("evict needs exactly one of module_sha256, engine and everything=True")
    if tier not in _TIERS:
        raise ValueError(
            f"tier is 'memory', 'host_store', 'redis' or None for every tier, not {tier!r}"
        )
    request = admin.EvictRequest(tier=_TIERS[tier])
    if module_sha256 is not None:
        request.module_sha256 = _digest(module_sha256)
    elif engine is not None:
        request.engine = engine
    else:
        request.all = True
    return request


def release_request(module_sha256: str | None, everything: bool) -> admin.ReleaseQuarantineRequest:
    """Return a ReleaseQuarantineRequest. Raise ValueError unless there is exactly one scope."""
    if (module_sha256 is not None) + everything != 1:
        raise ValueError("release needs either module_sha256 or everything=True")
    if module_sha256 is None:
        return admin.ReleaseQuarantineRequest(all=True)
    return admin.ReleaseQuarantineRequest(module_sha256=_digest(module_sha256))


def pin_request(module_sha256: str) -> admin.PinRequest:
    """Return a PinRequest. Raise ValueError for what is no digest."""
    return admin.PinRequest(module_sha256=_digest(module_sha256))


def unpin_request(module_sha256: str) -> admin.UnpinRequest:
    """Return an UnpinRequest. Raise ValueError for what is no digest."""
    return admin.UnpinRequest(module_sha256=_digest(module_sha256))


def drain_request(grace_s: float | None) -> admin.DrainRequest:
    """Return a DrainRequest. Raise ValueError unless the grace is from 0 s to a year."""
    request = admin.DrainRequest()
    if grace_s is not None:
        if not 0 <= grace_s <= MAX_TIMEOUT_S:
            raise ValueError("grace_s is a number of seconds, 0 or more")
        request.grace.FromNanoseconds(int(grace_s * 1e9))
    return request


def _digest(module_sha256: str) -> str:
    if not is_digest(module_sha256):
        raise ValueError("module_sha256 is 64 lowercase hexadecimal digits")
    return module_sha256
