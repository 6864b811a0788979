"""The record of a strike: a stamp, and JSON.

The text is an object of eight fields, and v0.1.0 reads no other. When the strike was written stands
before them, in a first field ``ttl_s``: of two fields of one name v0.1.0 takes the last. Its own
records do not say when they were written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from wasmkilnd.cache.fleet.holders import CLOCKS_DIFFER_S
from wasmkilnd.cache.value.codec import CheckStamp, Stamp
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
    """What a record says."""

    strike: Strike
    """With the time that its quarantine had when it was written."""
    ttl_s: int
    """How long it was to live then."""
    struck_ms: int
    """When that was, in milliseconds since 1970; 0 for v0.1.0's, which do not say."""

    def strike_at(self, ttl_s: int, now_ms: int) -> Strike | None:
        """Return the strike as it is when the record has ``ttl_s`` left to live.

        Within its life its age is the server's word. None where it should be gone by now, even
        by a clock that differs: somebody has put it back.
        """
        if self.struck_ms and now_ms / 1000 > self.struck_ms / 1000 + self.ttl_s + CLOCKS_DIFFER_S:
            return None
        # One that lives longer than it was written for was tampered with: it ends at once.
        age_s = self.ttl_s - ttl_s if 0 <= ttl_s <= self.ttl_s else self.ttl_s
        return replace(self.strike, left_s=max(0.0, self.strike.left_s - age_s))


def write_record(strike: Strike, ttl_s: int, struck_ms: int, stamp: Stamp) -> bytes:
    """Return the record of ``strike``, which is to live for ``ttl_s`` seconds."""
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
    """Return what a record says that was stored for ``key``.

    None if nobody trusted vouches for it, or if it says what no daemon writes.
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
    said: dict[str, Any] = dict(pairs)
    if not _is_record(said) or len(pairs) > len(said) + 1:
        return None
    if (said["module"], said["fingerprint"]) != (key.module_sha256, key.fingerprint):
        return None
    strike = Strike(
        key=key,
        engine_id=said["engine"],
        reason=said["reason"],
        message=said["message"],
        count=said["count"],
        left_s=said["quarantine_s"],
    )
    return Record(strike, said["ttl_s"], _struck_ms(pairs) if len(pairs) > len(said) else 0)


class _Pairs(list[tuple[str, object]]):
    """A JSON object's fields, as they stand there."""


def _struck_ms(pairs: _Pairs) -> int:
    name, told = pairs[0]
    return told if name == _STRUCK_MS and type(told) is int and 0 <= told < _MAX_MS else 0


def _is_record(said: dict[str, Any]) -> bool:
    return (
        {name: type(value) for name, value in said.items()} == _FIELDS
        and all(value.isprintable() for value in said.values() if isinstance(value, str))
        and 0 < said["count"] <= _MAX_COUNT
        and 0 < said["ttl_s"] <= _MAX_S
        and 0 <= said["quarantine_s"] <= _MAX_S
    )
