"""The stored record of a strike: a stamp, and JSON.

The JSON is an object with eight fields; v0.1.0 accepts no others. The time of writing stands before
them, as a first field that is also called ``ttl_s``: of two fields with one name v0.1.0 takes the
last. Records of v0.1.0 do not say when they were written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from wasmkilnd.cache.fleet.holders import CLOCKS_DIFFER_S
from wasmkilnd.cache.value.format import CheckStamp, Stamp
from wasmkilnd.model import STAMP_BYTES, CacheKey, Strike

MAX_RECORD_BYTES = 16 * 1024

_PURPOSE = b"wasmkiln strike\0"
_MAX_COUNT = 1_000_000
_MAX_S = 100 * 365 * 24 * 3600
_MAX_MS = 1 << 62
_FIELDS = {
    "count": int,
    "engine": str,
    "fingerprint": str,
    "message": str,
    "module": str,
    "quarantine_s": float,
    "reason": str,
    "ttl_s": int,
}
_STRUCK_MS = "ttl_s"


@dataclass(frozen=True, slots=True)
class Record:
    """The content of a record."""

    strike: Strike
    """With the quarantine's length as of the time of writing."""
    ttl_s: int
    """How long the record was to live, as of the time of writing."""
    struck_ms: int
    """The time of writing in milliseconds since 1970; 0 for a record of v0.1.0."""

    def strike_at(self, ttl_s: int, now_ms: int) -> Strike | None:
        """Return the strike as of now, when the server says that the record has ``ttl_s`` left.

        Return None if the record should have expired, even by a clock that differs: someone
        has written it back.
        """
        if self.struck_ms and now_ms / 1000 > self.struck_ms / 1000 + self.ttl_s + CLOCKS_DIFFER_S:
            return None
        # A record with more time left than it was written with was tampered with: end it now.
        age_s = self.ttl_s - ttl_s if 0 <= ttl_s <= self.ttl_s else self.ttl_s
        return replace(self.strike, left_s=max(0.0, self.strike.left_s - age_s))


def write_record(strike: Strike, ttl_s: int, struck_ms: int, stamp: Stamp) -> bytes:
    """Return a record of ``strike`` that is to live for ``ttl_s`` seconds."""
    fields = json.dumps(
        {
            "count": strike.count,
            "engine": strike.engine_id,
            "fingerprint": strike.key.fingerprint,
            "message": strike.message,
            "module": strike.key.module_sha256,
            "quarantine_s": float(strike.left_s),
            "reason": strike.reason,
            "ttl_s": ttl_s,
        },
        sort_keys=True,
    )
    text = f'{{"{_STRUCK_MS}": {struck_ms}, {fields[1:]}'.encode()
    return stamp(_PURPOSE + text) + text


def read_record(key: CacheKey, record: bytes, check: CheckStamp) -> Record | None:
    """Return the content of a record that was stored for ``key``.

    Return None if no trusted key vouches for it, or if it has a form that no daemon writes.
    """
    stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
    if len(record) > MAX_RECORD_BYTES or check(_PURPOSE + text, stamp):
        return None
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs):
        return None
    fields: dict[str, Any] = dict(pairs)
    if not _is_record(fields) or len(pairs) > len(fields) + 1:
        return None
    if (fields["module"], fields["fingerprint"]) != (key.module_sha256, key.fingerprint):
        return None
    strike = Strike(
        key=key,
        engine_id=fields["engine"],
        reason=fields["reason"],
        message=fields["message"],
        count=fields["count"],
        left_s=fields["quarantine_s"],
    )
    return Record(strike, fields["ttl_s"], _struck_ms(pairs) if len(pairs) > len(fields) else 0)


class _Pairs(list[tuple[str, object]]):
    """The fields of a JSON object in their order, duplicates included."""


def _struck_ms(pairs: _Pairs) -> int:
    name, value = pairs[0]
    return value if name == _STRUCK_MS and type(value) is int and 0 <= value < _MAX_MS else 0


def _is_record(fields: dict[str, Any]) -> bool:
    return (
        {name: type(value) for name, value in fields.items()} == _FIELDS
        and all(value.isprintable() for value in fields.values() if isinstance(value, str))
        and 0 < fields["count"] <= _MAX_COUNT
        and 0 < fields["ttl_s"] <= _MAX_S
        and 0 <= fields["quarantine_s"] <= _MAX_S
    )
