"""Certificates of signing keys in the shared tier, so that daemons need not be told of keys."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.errors import WrongType
from wasmkilnd.ports import Sealer

MAX_CERTIFICATE_BYTES = 16 * 1024
"""The most bytes of a certificate with its chain."""

_TTL_S = 400 * 24 * 3600
_ASK_AGAIN_S = 30.0
_MAX_ASKED = 1000


class CertificateStore:
    """The certificates on a server: one for each key, under the key's id. For one event loop."""

    def __init__(self, link: GuardedRedis, names: KeyNames, sealer: Sealer) -> None:
        """``names`` are those of the default namespace, whosever values are read."""
        self._link = link
        self._names = names
        self._sealer = sealer
        self._asked: OrderedDict[str, float] = OrderedDict()

    async def look_up(self, key_id: str) -> None:
        """Learn the certificate of a key if that may make it trusted. Raises TierUnavailable."""
        if not self._sealer.wants_certificate(key_id):
            return
        now_s = time.monotonic()
        if now_s < self._asked.get(key_id, 0.0):
            return
        self._asked[key_id] = now_s + _ASK_AGAIN_S
        self._asked.move_to_end(key_id)
        if len(self._asked) > _MAX_ASKED:
            self._asked.popitem(last=False)
        if chain := await self._read(key_id):
            await asyncio.to_thread(self._sealer.learn_certificate, chain)

    async def publish(self, key_id: str, chain: bytes) -> None:
        """Store the certificate of the daemon's own key, if it is not there. May be repeated."""
        if await self._read(key_id) != chain:
            await self._link.set(self._names.certificate(key_id), chain, _TTL_S)

    async def _read(self, key_id: str) -> bytes:
        name = self._names.certificate(key_id)
        try:
            [found] = await self._link.beginnings([name], [MAX_CERTIFICATE_BYTES + 1])
        except WrongType:
            await self._link.delete([name])
            return b""
        return found if len(found) <= MAX_CERTIFICATE_BYTES else b""
