"""Requests of the API, built from what callers give: a path, bytes or a digest for a module."""

from __future__ import annotations

import hashlib
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

# The daemon refuses more keys in one call; see FindMissing in module_service.proto.
FIND_MISSING_KEYS = 10_000
# The highest limit that a daemon can be configured to have. A larger file is not read.
_MAX_MODULE_BYTES = 1024**3

_TIERS: dict[str | None, admin.Tier] = {
    None: admin.TIER_UNSPECIFIED,
    "memory": admin.TIER_MEMORY,
    "redis": admin.TIER_REDIS,
}

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class IdentifiedModule:
    """A module's SHA-256 in lowercase hex, and its bytes unless only the digest is known."""

    sha256: str
    module: bytes | None


def is_digest(text: str) -> bool:
    """Whether a text is 64 lowercase hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def identify(source: Source) -> IdentifiedModule:
    """Reads and hashes a module; a digest is taken at its word.

    A text of 64 lowercase hexadecimal digits is a digest, unless a file has that name.
    Raises OSError when a path can't be read, ModuleTooLarge for what no daemon would take,
    TypeError for another kind of source.
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
    """Reads a file, or a pipe, but not one without an end such as /dev/zero."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        module = file.read(_MAX_MODULE_BYTES + 1) if size_bytes <= _MAX_MODULE_BYTES else b""
    if size_bytes > _MAX_MODULE_BYTES or len(module) > _MAX_MODULE_BYTES:
        raise ModuleTooLarge(
            f"{path} is larger than {_MAX_MODULE_BYTES:,} bytes, more than any daemon takes"
        )
    return module


def compile_request(
    *,
    engine: str | None,
    target: str | None,
    cpu: str | None,
    settings: Mapping[str, str] | None,
    skip_cache_lookup: bool,
    omit_artifact: bool,
) -> modules.CompileRequest:
    """A CompileRequest without a source, which the caller adds.

    Raises TypeError for a setting that is no text.
    """
    for name, value in (settings or {}).items():
        if not isinstance(value, str):
            raise TypeError(f"the value of setting {name!r} has to be a text, such as 'true'")
    return modules.CompileRequest(
        engine=engine or "",
        target=target or "",
        cpu=cpu or "",
        settings=dict(settings or {}),
        skip_cache_lookup=skip_cache_lookup,
        omit_artifact=omit_artifact,
    )


def artifact_keys(keys: Iterable[ArtifactKey | str]) -> list[ArtifactKey]:
    """Keys as they are, and a digest as the key of its default engine's artifact.

    Raises TypeError for a single text, whose characters would be taken for keys.
    """
    if isinstance(keys, str):
        raise TypeError("find_missing takes a list of keys or digests, not one text")
    return [ArtifactKey(module_sha256=key) if isinstance(key, str) else key for key in keys]


def in_batches(keys: Sequence[ArtifactKey]) -> Iterator[modules.FindMissingRequest]:
    """FindMissing requests of no more keys than the daemon takes in one."""
    for start in range(0, len(keys), FIND_MISSING_KEYS):
        yield modules.FindMissingRequest(keys=keys[start : start + FIND_MISSING_KEYS])


def evict_request(
    *, module_sha256: str | None, engine: str | None, everything: bool, tier: str | None
) -> admin.EvictRequest:
    """An EvictRequest. Raises ValueError unless exactly one scope and a known tier are given."""
    if (module_sha256 is not None) + (engine is not None) + everything != 1:
        raise ValueError("evict needs exactly one of module_sha256, engine and everything=True")
    if tier not in _TIERS:
        raise ValueError(f"tier is 'memory', 'redis' or None for every tier, not {tier!r}")
    request = admin.EvictRequest(tier=_TIERS[tier])
    if module_sha256 is not None:
        if not is_digest(module_sha256):
            raise ValueError("module_sha256 is 64 lowercase hexadecimal digits")
        request.module_sha256 = module_sha256
    elif engine is not None:
        request.engine = engine
    else:
        request.all = True
    return request


def release_request(module_sha256: str | None, everything: bool) -> admin.ReleaseQuarantineRequest:
    """A ReleaseQuarantineRequest. Raises ValueError unless exactly one scope is given."""
    if (module_sha256 is not None) + everything != 1:
        raise ValueError("release needs either module_sha256 or everything=True")
    if module_sha256 is None:
        return admin.ReleaseQuarantineRequest(all=True)
    if not is_digest(module_sha256):
        raise ValueError("module_sha256 is 64 lowercase hexadecimal digits")
    return admin.ReleaseQuarantineRequest(module_sha256=module_sha256)


def drain_request(grace_s: float | None) -> admin.DrainRequest:
    """A DrainRequest. Raises ValueError for a grace that is no duration."""
    request = admin.DrainRequest()
    if grace_s is not None:
        if not 0 <= grace_s <= MAX_TIMEOUT_S:
            raise ValueError("grace_s is a number of seconds, 0 or more")
        request.grace.FromNanoseconds(int(grace_s * 1e9))
    return request
