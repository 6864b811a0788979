"""Compute fingerprints without a daemon, from what it wrote into engines.json.

The same computation as the daemon's model.py and engines/registry.py; a test compares them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wasmkiln.host_store.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VERSION = 1
_NATIVE = "native"


@dataclass(frozen=True)
class Engines:
    """What the daemon serves: the rows of engines.json, in the daemon's order."""

    cache_format: int
    rows: tuple[Mapping[str, Any], ...]

    @classmethod
    def parse(cls, text: bytes) -> Engines:
        """Read engines.json. Raise Refused for anything but a document of this version."""
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise Refused(f"engines.json has the version {document['version']!r:.20}")
            cache_format = document["cache_format"]
            rows = tuple(row for row in document["engines"] if row["id"] and row["name"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise Refused("cannot read engines.json") from error
        return cls(cache_format, rows)

    def choose(
        self, engine: str, kind: str, fits: Callable[[str, str], bool] = lambda _name, _v: True
    ) -> Mapping[str, Any]:
        """Return the engine that a request names, as the daemon chooses it.

        Of several versions under one name, return the first that `fits(name, version)`. An
        empty name stands for the default, or, for a `kind` that the default does not run, the
        first engine that does. Raise Refused where there is none, and for an empty name without
        a kind, which decides.
        """
        for row in self.rows:
            if engine == row["id"]:
                return row
        if engine:
            named = [row for row in self.rows if row["name"] == engine]
            if len(named) == 1:  # whoever loads says it better than `fits` does
                return named[0]
            for row in named:
                if fits(engine, row["version"]):
                    return row
            raise Refused(f"the daemon serves no engine {engine:.100} that fits here")
        default = next((row for row in self.rows if row["default"]), None)
        if default is None or not kind:
            raise Refused("only the daemon knows its engine for this module")
        if kind in default["kinds"]:
            return default
        return next((row for row in self.rows if kind in row["kinds"]), default)

    def fingerprint(
        self, row: Mapping[str, Any], target: str, cpu: str, settings: Mapping[str, str]
    ) -> str:
        """Return the fingerprint of a request. Raise Refused for what the engine does not know."""
        if not (target or cpu or settings):
            known = row.get("fingerprint")
            if isinstance(known, str) and known:
                return known
        try:
            return self._computed(row, target, cpu, settings)
        except (LookupError, TypeError, AttributeError, StopIteration) as error:
            raise Refused("engines.json lacks what the fingerprint needs") from error

    def _computed(
        self, row: Mapping[str, Any], target: str, cpu: str, settings: Mapping[str, str]
    ) -> str:
        chosen = next(
            each
            for each in row["targets"]
            if each["triple"] == target or (not target and each["host"])
        )
        cpu = cpu or chosen["cpus"][0]
        if cpu not in chosen["cpus"]:
            raise Refused(f"the engine does not know the cpu {cpu:.100}")
        defaults = row["settings"]
        if unknown := settings.keys() - defaults.keys():
            raise Refused(f"the engine does not know the setting {min(unknown):.100}")
        in_force = {**defaults, **settings}
        for name in row["unhashed_defaults"]:
            if in_force.get(name) == defaults.get(name):
                in_force.pop(name, None)
        features = row["native_cpu_features"] if cpu == _NATIVE else ()
        canonical = json.dumps(
            {
                "cache_format": self.cache_format,
                "engine": [row["name"], row["version"], row["core_version"], row["compiler"]],
                "target": chosen["triple"],
                "cpu": cpu,
                "cpu_features": sorted(features),
                "settings": in_force,
            },
            sort_keys=True,
            separators=(",", ":"),
        )
        return hashlib.sha256(canonical.encode()).hexdigest()
