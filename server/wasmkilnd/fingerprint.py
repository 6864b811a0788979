"""Fingerprints: hosts with equal ones can load each other's artifacts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from wasmkilnd.model import EngineIdentity

HASHED_FORMAT = 2
"""What the fingerprints of 0.2.0 to 0.6.0 hash as the format of stored values.

It stays for ever, so that an artifact keeps its address whatever becomes of that format, whose
version stands in the names of keys (``cache.value``). When a change of ours makes artifacts of the
same engine, target, cpu and settings differ, add a field to what is hashed.
"""

UNHASHED_DEFAULTS: Mapping[str, str] = {
    "strategy": "cranelift",
    "compiler": "cranelift",
    "collector": "drc",
}
"""Settings that earlier versions did not have, with what their artifacts were made with.

They enter a fingerprint only where they differ from these: so the artifacts of 0.2.0 are found.
"""


def fingerprint(
    engine: EngineIdentity,
    target: str,
    cpu: str,
    cpu_features: Sequence[str],
    settings: Mapping[str, str],
) -> str:
    """Return the digest, as 64 hexadecimal digits, of all that decides what can load an artifact.

    ``cpu_features`` are the host's where ``cpu`` is ``native``, which differs from host to
    host, and empty otherwise. ``settings`` hold every setting with its effective value; those of
    ``UNHASHED_DEFAULTS`` may be missing at their default.
    """
    canonical = json.dumps(
        {
            "cache_format": HASHED_FORMAT,
            "engine": [engine.name, engine.version, engine.core_version, engine.compiler],
            "target": target,
            "cpu": cpu,
            "cpu_features": sorted(cpu_features),
            "settings": {n: v for n, v in settings.items() if v != UNHASHED_DEFAULTS.get(n)},
        },
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
