"""Texts that daemons sign and keep in Redis: strikes against modules, lists of pins, sums of uses.

**A record** is a stamp, then the text that it signs. Other programs may write to the server, too.
So no more is read than a record may have, a key of another type is deleted, and a text counts only
if a trusted key signed it for this purpose and this name.

**A strike** (``<prefix>3:strike:{<module>}:<fingerprint>``) says when it was written and for how
long. Whoever writes an old one back can make it count until then. ``quarantine.py`` decides what it
means.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import structlog
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from wasmkilnd.errors import TierUnavailable, WrongType
from wasmkilnd.model import STAMP_BYTES, CacheKey, Strike
from wasmkilnd.redis.servers import WRITE_TIMEOUT_S, RedisLink
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.waits.budgets import WaitBudget

_MAX_LISTED, _MAX_BYTES, _MAX_STRIKE_BYTES = 10_000, 2 * 1024**2, 16 * 1024
_PURPOSE = b"wasmkiln strike 3"
_LONGEST_S = 100 * 365 * 24 * 3600

log = structlog.get_logger("wasmkilnd.cache")


def opened(link: RedisLink | None) -> RedisLink:
    """Return the link. Raise TierUnavailable if there is none."""
    if link is None:
        raise TierUnavailable("there is no shared tier")
    return link


def name_of(prefix: str, key: CacheKey) -> bytes:
    """Return the name of what is about one artifact."""
    return f"{prefix}{{{key.module_sha256}}}:{key.fingerprint}".encode()


class Strikes:
    """Strikes against modules, which daemons share. Every method raises TierUnavailable.

    A daemon believes what a trusted key signed for this very key. A released strike is deleted;
    one that somebody writes back counts until its own time ends, by the clock of the reader.
    """

    def __init__(self, link: RedisLink | None, prefix: str, sealer: Sealer) -> None:
        self._link = link
        self._prefix = f"{prefix}3:strike:"
        self._sealer = sealer

    async def get(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        """Return the strike against ``key``, with the time that its quarantine has left."""
        found = await budget.spend_on(self._read([name_of(self._prefix, key)]))
        return found[0] if found else None

    async def put(self, strike: Strike, ttl_s: float, budget: WaitBudget) -> None:
        """Store ``strike``, over what is there, for ``ttl_s`` seconds."""
        name = name_of(self._prefix, strike.key)
        said = (strike.engine_id, strike.reason, strike.message, strike.count, strike.left_s)
        # Who reads it checks it.
        record = _Record(*said, max(1, round(ttl_s)), time.time(), dict(strike.limits))
        text = _RECORDS.dump_json(record, exclude_defaults=True)
        stored = written(_PURPOSE, name, text, self._sealer)
        await budget.spend_on(store(opened(self._link), name, stored, record.ttl_s))

    async def all(self) -> Sequence[Strike]:
        """Return all strikes, 10,000 at most."""
        found: dict[CacheKey, Strike] = {}
        # In pages; some may come twice.
        async for names in opened(self._link).scan(f"{self._prefix}*".encode()):
            found |= {strike.key: strike for strike in await self._read(names)}
            if len(found) >= _MAX_LISTED:
                break
        return list(found.values())[:_MAX_LISTED]

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        """Delete the strikes against a module, or against all modules for an empty digest."""
        removed: list[CacheKey] = []
        if self._link is None:
            return removed
        pattern = f"{self._prefix}{{{module_sha256}}}:*" if module_sha256 else f"{self._prefix}*"
        async for names in self._link.scan(pattern.encode()):
            existed = await self._link.run(*(("UNLINK", name) for name in names))
            found = zip(names, existed, strict=True)
            removed += [key for name, did in found if did and (key := self._key_of(name))]
        return removed

    async def _read(self, names: Sequence[bytes]) -> list[Strike]:
        """Return the strikes that count under ``names``."""
        records = await fetch(opened(self._link), names, _MAX_STRIKE_BYTES)
        return [strike for strike in map(self._strike, names, records) if strike]

    def _strike(self, name: bytes, stored: bytes) -> Strike | None:
        key = self._key_of(name)
        if not stored or key is None:
            return None
        try:
            text = text_of(_PURPOSE, name, stored, self._sealer)
            record = _RECORDS.validate_json(text)
        except ValidationError:
            module = key.module_sha256
            log.warning("ignored a quarantine record without a valid stamp", module=module)
            return None
        age_s = max(0.0, time.time() - record.written_s)
        if age_s > record.ttl_s:
            return None  # Somebody has written it back.
        left_s = max(0.0, record.quarantine_s - age_s)
        said = (record.engine, record.reason, record.message, record.count, left_s)
        return Strike(key, *said, record.limits)

    def _key_of(self, name: bytes) -> CacheKey | None:
        found = _KEY.fullmatch(name.decode(errors="replace").removeprefix(self._prefix))
        return CacheKey(*found.groups()) if found else None


_KEY = re.compile(r"\{([0-9a-f]{64})\}:([0-9a-f]{64})")
# What can be told to callers and operators: nothing that moves a cursor or hides text.
_Text = Annotated[str, Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$")]
_Limit = Annotated[str, Field(pattern="^(memory_bytes|timeout_s|cpu_s)$")]


@dataclass
class _Record:
    """What a strike's key holds behind its stamp, as JSON."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    engine: _Text
    reason: _Text
    message: _Text
    count: int = Field(ge=1, le=1_000_000)
    quarantine_s: float = Field(ge=0, le=_LONGEST_S)
    ttl_s: int = Field(ge=1, le=_LONGEST_S)
    written_s: float = Field(ge=0, le=1e11)
    limits: dict[_Limit, float] = field(default_factory=dict)


_RECORDS = TypeAdapter(_Record)


def written(purpose: bytes, name: bytes, text: bytes, sealer: Sealer) -> bytes:
    """Return the bytes to store for ``text``."""
    return sealer.stamp(b"\0".join((purpose, name, text))) + text


def text_of(purpose: bytes, name: bytes, record: bytes, sealer: Sealer) -> bytes:
    """Return the text of a stored record; nothing if no trusted key signed it for ``name``."""
    stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
    if len(record) > _MAX_BYTES or not text:
        return b""
    return b"" if sealer.check_stamp(b"\0".join((purpose, name, text)), stamp) else text


async def store(link: RedisLink, name: bytes, record: bytes, ttl_s: int) -> None:
    """Store a record for ``ttl_s`` seconds. Raises TierUnavailable."""
    await link.run(("SET", name, record, "EX", ttl_s), timeout_s=WRITE_TIMEOUT_S)


async def fetch(
    link: RedisLink, names: Sequence[bytes], length: int = _MAX_BYTES + 1
) -> list[bytes]:
    """Return the first bytes under each name, empty for none; delete what is of another type.

    Raises TierUnavailable.
    """
    try:
        return await link.run(*(("GETRANGE", name, 0, length - 1) for name in names))
    except WrongType:
        if len(names) == 1:
            await link.run(("UNLINK", names[0]))
            return [b""]
    return [found for name in names for found in await fetch(link, [name], length)]
