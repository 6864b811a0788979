"""Records of uses, as the shared tier and the state directory hold them: JSON, bounded.

A record in the shared tier begins with a stamp and names the daemon whose uses it sums.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from wasmkilnd.cache.value.format import CheckStamp, Stamp
from wasmkilnd.model import SHA256_HEX, STAMP_BYTES
from wasmkilnd.uses import MAX_USES, UsedSpec, Uses

MAX_RECORD_BYTES = 2 * 1024**2
"""The most bytes of a record."""
OWNER_BYTES = 16
"""A record's owner stands behind its stamp, so that the beginning of a record tells it."""

_VERSION = 1
# Part of what a stamp signs, so that no signature for another purpose passes for one.
_PURPOSE = b"wasmkiln uses\0"
_MAX_SPECS = 256
_MAX_TEXT = 200
_MAX_SETTINGS = 64
_MAX_COUNT = 1e12
# Clocks of a fleet differ.
_MOST_AHEAD_S = 300.0


@dataclass(frozen=True, slots=True)
class UseRecord:
    """What one daemon counted."""

    uses: Uses
    owner: bytes
    left: bool
    """Whether the daemon has ended, so that another may take the record over."""


def write_record(record: UseRecord, namespace: bytes, stamp: Stamp) -> bytes:
    """Return the bytes to store in the shared tier, for what ``namespace`` names alone."""
    text = record.owner + to_json(record.uses, left=record.left)
    return stamp(_message(namespace, text)) + text


def owner_of(record: bytes) -> bytes:
    """Return whose record it is that begins with these bytes; empty for none."""
    return record[STAMP_BYTES : STAMP_BYTES + OWNER_BYTES]


def read_record(record: bytes, namespace: bytes, check: CheckStamp) -> UseRecord | None:
    """Return what a stored record says; None if no trusted key signed it for ``namespace``."""
    stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
    if len(record) > MAX_RECORD_BYTES or not text or check(_message(namespace, text), stamp):
        return None
    read = from_json(text[OWNER_BYTES:])
    return UseRecord(read[0], text[:OWNER_BYTES], read[1]) if read else None


def to_json(uses: Uses, *, left: bool = False) -> bytes:
    """Return uses as text, those used most first, as far as the bounds go."""
    specs: dict[UsedSpec, int] = {}
    rows = []
    for (module_sha256, spec), count in uses.most(MAX_USES):
        if spec not in specs and len(specs) == _MAX_SPECS:
            continue
        rows.append([module_sha256, specs.setdefault(spec, len(specs)), round(count, 3)])
    document = {
        "version": _VERSION,
        "at": round(uses.at_s, 3),
        "left": left,
        "specs": [[each.engine_id, each.target, each.cpu, dict(each.settings)] for each in specs],
        "uses": rows,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def from_json(text: bytes) -> tuple[Uses, bool] | None:
    """Return what ``to_json`` wrote; None for anything else."""
    try:
        document: Any = json.loads(text)
        if document["version"] != _VERSION or len(document["uses"]) > MAX_USES:
            return None
        at_s, specs = float(document["at"]), [_spec(*each) for each in document["specs"]]
        if not 0.0 <= at_s < time.time() + _MOST_AHEAD_S:
            return None
        counts = {}
        for module_sha256, number, count in document["uses"]:
            if not (SHA256_HEX.fullmatch(module_sha256) and 0.0 <= count < _MAX_COUNT):
                return None
            counts[(module_sha256, specs[number])] = float(count)
        return Uses(counts, at_s), document["left"] is True
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None


def _message(namespace: bytes, text: bytes) -> bytes:
    # Whoever can write to the server must not pass one tenant's record off as another's.
    return b"%b%b\0%b" % (_PURPOSE, namespace, text)


def _spec(engine_id: str, target: str, cpu: str, settings: dict[str, str]) -> UsedSpec:
    texts = [engine_id, target, cpu, *settings.keys(), *settings.values()]
    if len(settings) > _MAX_SETTINGS or not all(
        isinstance(text, str) and len(text) <= _MAX_TEXT for text in texts
    ):
        raise ValueError("expected short strings")
    return UsedSpec(engine_id, target, cpu, tuple(sorted(settings.items())))
