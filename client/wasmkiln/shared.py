"""What daemon and client both know, once: digests, fingerprints, the host store's layout, sizes.

It needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fractions import Fraction

# What identifies a module, a key or an artifact.

MAX_MODULE_BYTES = 1024**3
"""The highest limit that a daemon can be configured to have."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Return whether a text is 64 lowercase hexadecimal digits. Raise TypeError for no text."""
    return _DIGEST.fullmatch(text) is not None


# Of an artifact.

FAST_SETTINGS: Mapping[str, tuple[str, str]] = {
    "wasmtime": ("strategy", "winch"),
    "wasmer": ("compiler", "singlepass"),
}
"""By an engine's name: the setting, and its value, that chooses the engine's fast compiler."""

UNHASHED_DEFAULTS = {
    "strategy": "cranelift",
    "compiler": "cranelift",
    "collector": "drc",
    "memory_init_cow": "true",
    "memory_reservation_for_growth": "2147483648",
    "debug_info": "false",
    "concurrency_support": "true",
    "wasm_branch_hinting": "false",
    "wasm_compact_imports": "false",
    "wasm_component_model_accessors": "false",
    "wasm_component_model_async": "true",
    "wasm_component_model_async_stackful": "false",
    "wasm_component_model_canonical_names": "false",
    "wasm_component_model_more_async_builtins": "false",
}
"""Settings that earlier versions did not have, with what their artifacts were made with.

They enter a fingerprint only where they differ from these: so the artifacts of 0.2.0 are found.
"""

HASHED_FORMAT = 2
"""What the fingerprints of 0.2.0 to 0.6.0 hash as the format of stored values.

It stays for ever, so that an artifact keeps its address whatever becomes of that format, whose
version stands in the names of keys. When a change of ours makes artifacts of the same engine,
target, cpu and settings differ, add a field to what is hashed.
"""


def fingerprint(
    engine: Any,
    target: str,
    cpu: str,
    cpu_features: Iterable[str],
    settings: Mapping[str, str],
    *,
    unhashed: Mapping[str, str] = UNHASHED_DEFAULTS,
    cache_format: int = HASHED_FORMAT,
) -> str:
    """Return the digest, as 64 hexadecimal digits, of all that decides what can load an artifact.

    `engine` has name, version, core_version and compiler. `cpu_features` are the host's where
    `cpu` is "native", which differs from host to host, and empty otherwise. `settings` hold every
    setting with its effective value; those of `unhashed` may be missing at that value.
    """
    decides = {
        "cache_format": cache_format,
        "engine": [engine.name, engine.version, engine.core_version, engine.compiler],
        "target": target,
        "cpu": cpu,
        "cpu_features": sorted(cpu_features),
        "settings": {n: v for n, v in settings.items() if v != unhashed.get(n)},
    }
    canonical = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def engine_id(engine: Any) -> str:
    """Return an engine's id, made from its attested name and version."""
    return f"{engine.name}-{engine.version}"


# The layout of a host store follows from fingerprint and module digest alone:
#
#   <directory>/engines.json                                   what the daemon serves
#   <directory>/<fingerprint>/<module[:2]>/<module>/           one entry, renamed into place whole
#       artifact                                               the engine's native code, as it is
#       artifact.json                                          its ArtifactHeader, as JSON
#       artifact.dsse.json                                     its attestation, if the daemon signs
#   <directory>/ns/<namespace>/                                all of it again, for a namespace
#
# docs/how-to/host-store.md says the same for other languages.

ENGINES = "engines.json"
ARTIFACT = "artifact"
HEADER = "artifact.json"
ATTESTATION = "artifact.dsse.json"
NAMESPACES = "ns"

# The names of namespaces, other than that of the default one.
NAMESPACE_SHAPE = "1 to 63 lowercase letters, digits and hyphens, no hyphen first"
NAMESPACE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def namespace_path(directory: Path, namespace: str) -> Path:
    """Return the directory of a namespace's store; that of the default one is `directory`.

    Raise ValueError for what is no name of a namespace: it must not lead to another place.
    """
    if not namespace:
        return directory
    if not NAMESPACE_NAME.fullmatch(namespace):
        raise ValueError(f"expected a namespace: {NAMESPACE_SHAPE}, not {namespace!r:.80}")
    return directory / NAMESPACES / namespace


def entry_path(directory: Path, fingerprint: str, module_sha256: str) -> Path:
    """Return the folder of an entry."""
    return directory / fingerprint / module_sha256[:2] / module_sha256


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return the state directory of this user's daemon. Raise RuntimeError without a home."""
    return user_folder(environ, "XDG_STATE_HOME", ".local/state")


def user_folder(environ: Mapping[str, str], variable: str, otherwise: str) -> Path:
    """Return wasmkiln's folder in one of XDG's. Raise RuntimeError without a home."""
    # The XDG specification says to ignore a relative path.
    chosen, home = Path(environ.get(variable, "")), Path(environ.get("HOME", ""))
    if not chosen.is_absolute():
        chosen = (home if home.is_absolute() else Path.home()) / otherwise
    return chosen / "wasmkiln"


# Sizes and durations as people write them: `256MiB`, `500ms`, `7d`.

_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)")
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECONDS: Mapping[str, int | str] = {"ms": "1/1000", "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_bytes(value: object) -> int:
    """Return a size in bytes from an integer or a text such as `64MiB`. Raise ValueError."""
    what = "a size: write bytes as in 268435456, or a suffix as in 256MiB or 1GB"
    return int(_number(str(value).lower(), what, _BYTES))


def parse_seconds(value: object) -> float:
    """Return a duration from a number or a text such as `500ms`. Raise ValueError."""
    what = "a duration: write seconds as in 30 or 0.5, or a suffix as in 500ms, 5m or 7d"
    return float(_number(str(value), what, _SECONDS, whole=False))


def parse_count(value: object) -> int:
    """Return a whole number, also from text. Raise ValueError."""
    return int(_number(str(value), "a whole number", {}))


def _number(
    text: str, what: str, units: Mapping[str, int | str], *, whole: bool = True
) -> Fraction:
    from fractions import Fraction  # and decimal, which few programs need

    match, known = _NUMBER_AND_UNIT.fullmatch(text.strip()), {"": 1, **units}
    number = Fraction(match[1]) * Fraction(known[match[2]]) if match and match[2] in known else None
    if number is None or (whole and number.denominator != 1):
        raise ValueError(f"{text[:60]!r} is not {what}")
    return number


# Whether a file is still the one that was checked.

# A file may be written twice within one tick of the clock that its times are taken from, so
# a file this young may still change without a trace.
RACY_S = 1.0


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to."""
    times = status.st_mtime_ns, status.st_ctime_ns
    return (status.st_dev, status.st_ino, status.st_size, *times)


def is_racy(status: os.stat_result) -> bool:
    """Return whether the file changed so recently that it may change without a trace."""
    return time.time() - max(status.st_mtime, status.st_ctime) < RACY_S
