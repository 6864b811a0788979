"""Fingerprints: equal ones mean that an artifact made by one loads in the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from wasmkilnd.model import EngineIdentity

# Part of every fingerprint, and the version of stored values: raise it when the format of
# values changes, or when artifacts of the same engine, target, cpu and settings stop being
# interchangeable for a reason of our own. Daemons of both versions then share a Redis
# without ever meeting each other's artifacts.
CACHE_FORMAT = 2


def fingerprint(
    engine: EngineIdentity,
    target: str,
    cpu: str,
    cpu_features: Sequence[str],
    settings: Mapping[str, str],
) -> str:
    """Digest all that decides whether a host can load an artifact.

    ``cpu_features`` are those of the host where ``cpu`` is ``native``, which
    alone says nothing, and empty otherwise. ``settings`` hold every setting
    with the value in force. Answers 64 hexadecimal digits.
    """
    canonical = json.dumps(
        {
            "cache_format": CACHE_FORMAT,
            "engine": [engine.name, engine.version, engine.core_version, engine.compiler],
            "target": target,
            "cpu": cpu,
            "cpu_features": sorted(cpu_features),
            "settings": dict(settings),
        },
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
