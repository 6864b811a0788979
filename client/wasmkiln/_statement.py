"""What an attestation states: an in-toto Statement v1 with a SLSA provenance v1 predicate.

docs/how-to/verify.md shows the document. Reading and writing it needs the standard library
only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

UTC = timezone.utc  # noqa: UP017 - Python 3.10 too
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:wasmkiln:compile:v1"
BUILDER_ID = "urn:wasmkiln:daemon"


@dataclass(frozen=True)
class Claims:
    """What an attestation binds together: one artifact, its module, and how it was compiled."""

    artifact_sha256: str
    module_sha256: str
    fingerprint: str
    kind: str
    """`core` or `component`."""
    engine: Mapping[str, str]
    """`name`, `version`, `coreVersion` and `compiler`."""
    target: str
    cpu: str
    settings: Mapping[str, str]
    changed_settings: Mapping[str, str]


@dataclass(frozen=True)
class Statement:
    """What an attestation says: the claims, and who made the artifact, when, and how fast."""

    claims: Claims
    daemon_version: str
    finished_on: str
    """When the daemon signed it: RFC 3339, in UTC."""
    compile_time_s: float
    types_sha256: str
    """A digest over the module's imports and exports. Daemons check it; clients do not."""
    made_ms: int = 0
    """When the artifact was made, in milliseconds since 1970. If the daemon knew of an Evict
    later than that, a moment after the Evict. 0 where a daemon of v0.1.0 signed."""

    @property
    def when_ms(self) -> int:
        """When the artifact was made, by what is stated; 0 if no time is."""
        if self.made_ms:
            return self.made_ms
        try:
            finished = datetime.strptime(self.finished_on, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            return 0
        return int(finished.replace(tzinfo=UTC).timestamp()) * 1000

    def payload(self) -> bytes:
        """Return the in-toto statement's bytes, which are what a daemon signs."""
        claims = self.claims
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": "artifact", "digest": {"sha256": claims.artifact_sha256}}],
                "predicateType": PREDICATE_TYPE,
                "predicate": {
                    "buildDefinition": {
                        "buildType": BUILD_TYPE,
                        "externalParameters": {
                            "changedSettings": dict(claims.changed_settings),
                            "cpu": claims.cpu,
                            "engine": dict(claims.engine),
                            "fingerprint": claims.fingerprint,
                            "kind": claims.kind,
                            "settings": dict(claims.settings),
                            "target": claims.target,
                        },
                        "resolvedDependencies": [
                            {"name": "module", "digest": {"sha256": claims.module_sha256}}
                        ],
                    },
                    "runDetails": {
                        "builder": {
                            "id": BUILDER_ID,
                            "version": {"wasmkiln": self.daemon_version},
                        },
                        "byproducts": [{"name": "types", "digest": {"sha256": self.types_sha256}}],
                        "metadata": {
                            "finishedOn": self.finished_on,
                            "wasmkiln_compileTimeS": self.compile_time_s,
                            **({"wasmkiln_madeMs": self.made_ms} if self.made_ms else {}),
                        },
                    },
                },
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> Statement:
        """Read a payload. Ignore fields that this version does not know.

        Raise KeyError, TypeError or ValueError when it is not a statement about an artifact.
        """
        document = json.loads(payload)
        predicate = document["predicate"]
        definition, details = predicate["buildDefinition"], predicate["runDetails"]
        kinds = document["_type"], document["predicateType"], definition["buildType"]
        if kinds != (STATEMENT_TYPE, PREDICATE_TYPE, BUILD_TYPE):
            raise ValueError("expected a statement of another type")
        [subject], [module] = document["subject"], definition["resolvedDependencies"]
        [types] = details["byproducts"]
        given = definition["externalParameters"]
        made_ms = dict(details["metadata"]).get("wasmkiln_madeMs", 0)
        if type(made_ms) is not int or made_ms < 0:
            raise ValueError("wasmkiln_madeMs: expected a non-negative integer")
        return cls(
            Claims(
                artifact_sha256=expect_text(subject["digest"]["sha256"]),
                module_sha256=expect_text(module["digest"]["sha256"]),
                fingerprint=expect_text(given["fingerprint"]),
                kind=expect_text(given["kind"]),
                engine=_texts(given["engine"]),
                target=expect_text(given["target"]),
                cpu=expect_text(given["cpu"]),
                settings=_texts(given["settings"]),
                changed_settings=_texts(given["changedSettings"]),
            ),
            daemon_version=expect_text(details["builder"]["version"]["wasmkiln"]),
            finished_on=expect_text(details["metadata"]["finishedOn"]),
            compile_time_s=_number(details["metadata"]["wasmkiln_compileTimeS"]),
            types_sha256=expect_text(types["digest"]["sha256"]),
            made_ms=made_ms,
        )


def expect_text(value: Any) -> str:
    """Return the value. Raise TypeError unless it is a string."""
    if not isinstance(value, str):
        raise TypeError("expected a string")
    return value


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("expected an object")
    return {name: expect_text(each) for name, each in value.items()}


def _number(value: Any) -> float:
    # `not … <` refuses NaN too; an integer in JSON may have a thousand digits.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise TypeError("expected a number")
    return value


def canonical_json(document: object) -> bytes:
    """Return JSON as wasmkiln signs it: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()
