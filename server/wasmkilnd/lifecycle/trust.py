"""Keep the daemon's trust up to date: revocations of keys, and artifacts that grow too old."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import structlog
from wasmkiln.revoked_keys import strictest

from wasmkilnd.config.schema import Settings
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.lifecycle.auditing import audit_keys, audit_revocations
from wasmkilnd.ports import Auditor
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.signing.files import KeysUnusable
from wasmkilnd.signing.opening import Signing, log_key_changes
from wasmkilnd.tenants.tenants import Tenants

log = structlog.get_logger("wasmkilnd.keys")

LOOK_EVERY_S = 30.0
"""How long a daemon may go on trusting a key that another one revoked."""

# With a small value_max_age_s, memory is looked through more often, within reason.
_LEAST_PAUSE_S = 1.0


class TrustKeeper:
    """Looks for revocations in the key directory and in the shared tier. For one event loop."""

    def __init__(
        self,
        signing: Reloadable[Signing],
        open_again: Callable[[], Signing],
        tenants: Tenants,
        auditor: Auditor,
    ) -> None:
        """Drop from all caches of ``tenants`` what is refused from now on.

        ``open_again`` reads the keys as they are now, and raises KeysUnusable.
        """
        self._signing = signing
        self._open_again = open_again
        self._tenants = tenants
        self._auditor = auditor
        self._wake = asyncio.Event()
        self._logged = ""

    def prepare(self, new: Settings) -> Callable[[], None]:
        """Return what makes it look at once after a reload."""
        return self._wake.set

    async def run(self) -> None:
        """Look every LOOK_EVERY_S, and when a reload asks for it; never end by itself."""
        while True:
            try:
                async with asyncio.timeout(self._pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.look()
            except Exception:
                log.exception("a defect keeps revocations from being read")

    async def look(self) -> None:
        """Learn revocations, spread those that are known, and drop what is refused now."""
        looked_with = None
        while looked_with is not self._signing.current:  # A reload may replace the keys meanwhile.
            looked_with = self._signing.current
            await self._look()

    async def _look(self) -> None:
        kept = await self._kept(self._signing.current)
        if self._signing.current.ring.signing.public.id in kept:
            await self._change_keys()
        signing = self._signing.current
        own = signing.ring.signing.public.id
        found = strictest(kept, await self._of_others(signing, own))
        if found.pop(own, None) is not None and own not in kept:
            # Obeying would protect nobody: each other daemon goes by its own revocations.
            self._log_once(f"another daemon revoked {own}, with which this one signs")
        new = await asyncio.to_thread(signing.ring.revoke, found) if found else {}
        await self._publish_certificate(signing, own)
        if signing.ring.certified.drop_expired():
            await self._tenants.recheck(signing.sealer)
        audit_revocations(self._auditor, new)
        if new:
            dropped = await self._tenants.recheck(signing.sealer)
            log.warning("artifacts dropped from memory: their key is revoked", count=dropped)
        elif signing.sealer.max_age_s:
            await self._tenants.drop_outdated(signing.sealer)

    async def _publish_certificate(self, signing: Signing, own: str) -> None:
        redis = self._tenants.default.shared.redis
        if redis and signing.ring.certificate:
            with contextlib.suppress(TierUnavailable):  # The breaker has logged it.
                await redis.certificates.publish(own, signing.ring.certificate)

    async def _change_keys(self) -> None:
        """Sign with another key: the key directory revokes the one that is used."""
        before = self._signing.current
        try:
            signing = await asyncio.to_thread(self._open_again)
        except KeysUnusable as failure:
            self._log_once(str(failure))
            return
        self._signing.current = signing
        signing.ring.take_over(before.ring)
        audit_keys(self._auditor, before, signing)
        if log_key_changes(before, signing):
            await self._tenants.recheck(signing.sealer)

    @property
    def _pause_s(self) -> float:
        max_age_s = self._signing.current.sealer.max_age_s
        return max(_LEAST_PAUSE_S, min(LOOK_EVERY_S, max_age_s / 4 or LOOK_EVERY_S))

    async def _kept(self, signing: Signing) -> Mapping[str, int]:
        """Return what the key directory revokes: an operator's command may have changed it."""
        try:
            return await asyncio.to_thread(signing.ring.read_revoked)
        except KeysUnusable as failure:
            self._log_once(f"cannot read the revocations: {failure}")
            return {}

    async def _of_others(self, signing: Signing, own: str) -> Mapping[str, int]:
        revocations = self._tenants.default.shared.revocations
        if revocations is None:
            return {}
        ring = signing.ring
        try:
            return await revocations.exchange(ring.trusted, ring.revoked, own)
        except TierUnavailable:
            return {}  # The breaker has logged it.

    def _log_once(self, why: str) -> None:
        if why != self._logged:
            self._logged = why
            log.error("revocations need an operator", cause=why)
