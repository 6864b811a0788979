"""What clients need in order to compute fingerprints without a call: the host store's list."""

from __future__ import annotations

from typing import Any

from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.fingerprint import HASHED_FORMAT, UNHASHED_DEFAULTS

VERSION = 1
"""Raise it when a client that knows the old document would compute wrong fingerprints."""


def served_engines(engines: EngineRegistry) -> dict[str, Any]:
    """Return the document that the host store keeps as ``engines.json``.

    Engines come in the order in which a request's name chooses among them: the one that a name
    stands for is the first of its name. docs/reference/host-store.md says how a client computes a
    fingerprint from it.
    """
    return {
        "version": VERSION,
        "cache_format": HASHED_FORMAT,
        "engines": [_engine(engine, engine.id == engines.default) for engine in engines.served],
    }


def _engine(engine: ServedEngine, is_default: bool) -> dict[str, Any]:
    capabilities = engine.capabilities
    identity = capabilities.identity
    return {
        "id": identity.id,
        "name": identity.name,
        "version": identity.version,
        "core_version": identity.core_version,
        "compiler": identity.compiler,
        "default": is_default,
        "kinds": sorted(kind.value for kind in capabilities.kinds),
        "targets": [
            {"triple": target.triple, "host": target.host, "cpus": list(target.cpus)}
            for target in capabilities.targets
        ],
        "native_cpu_features": sorted(capabilities.host_cpu_features),
        "settings": {setting.name: setting.default for setting in capabilities.settings},
        # Settings that enter the fingerprint only where they differ from their default.
        "unhashed_defaults": [
            setting.name
            for setting in capabilities.settings
            if setting.default == UNHASHED_DEFAULTS.get(setting.name)
        ],
        "fingerprint": engine.spec("", "", {}).fingerprint,
    }
