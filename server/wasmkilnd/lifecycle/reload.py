"""Reload on SIGHUP: replace the current settings and keys with those read again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from wasmkilnd.access.unusable import defect_in
from wasmkilnd.cache.redis_servers import AccessUnusable
from wasmkilnd.model import Limits, Reloadable, TrafficLimits
from wasmkilnd.options import limits_of, limits_too_low, redis_access, traffic_limits
from wasmkilnd.settings import Settings
from wasmkilnd.settings_loader import Change, ConfigError, LoadedSettings, changes, take_over
from wasmkilnd.signing.keys import Keys, KeysUnusable, open_keys
from wasmkilnd.signing.keys import changes as key_changes
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.audit import Audit, CannotAudit, audit_change
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.tenants import Tenants

log = structlog.get_logger("wasmkilnd")

_TLS_FILES = ("tls_cert_file", "tls_key_file", "tls_client_ca_file")


class CannotReload(Exception):  # noqa: N818 - says what the daemon cannot do
    """A part cannot use the new settings, or what they name; the message says why."""

    def __init__(self, why: str, rest: Callable[[], None] | None = None) -> None:
        """``rest`` applies what the part can use all the same."""
        super().__init__(why)
        self.rest = rest


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """How a reload ended."""

    refused: str = ""
    """Why it changed nothing; empty if it could be applied."""
    need_restart: Sequence[str] = ()
    """Settings that have changed, and stay as they were."""


_CANNOT = (ConfigError, KeysUnusable, AccessUnusable, CannotAudit, CannotReload)

Prepare: TypeAlias = Callable[[Settings], Callable[[], None]]
"""Reads all that a part takes from settings and the files that they name; returns what applies it.

It runs in a thread, may block, and changes nothing. What it returns runs in the event loop, at
once. Raises CannotReload."""


class Reloader:
    """Applies what can be applied while everything runs. For one event loop.

    It reads and checks everything first: a configuration or a key that it cannot use changes
    nothing.
    """

    def __init__(
        self,
        settings: Reloadable[Settings],
        limits: Reloadable[Limits],
        traffic: Reloadable[TrafficLimits],
        sealer: Sealer,
        tenants: Tenants,
        auditor: Audit,
        metrics: Metrics,
        *,
        largest_module_bytes: int,
        parts: Sequence[Prepare] = (),
    ) -> None:
        """Reload what these hold. Modules above ``largest_module_bytes`` need a restart."""
        self._settings = settings
        self._limits = limits
        self._traffic = traffic
        self._sealer = sealer
        self._tenants = tenants
        self._auditor = auditor
        self._metrics = metrics
        self._largest_module_bytes = largest_module_bytes
        self._parts = parts
        self._one_at_a_time = asyncio.Lock()
        self._refused: dict[int, str] = {}

    async def reload(self, read: Callable[[], LoadedSettings]) -> ReloadResult:
        """Read and apply, and log each change or why nothing changed; raise for neither."""
        async with self._one_at_a_time:
            done = False
            try:
                result = await self._reload(read)
                done = not result.refused
            finally:
                self._metrics.reloaded("settings", succeeded=done)
            if done:  # It read the files too, and every part could use them.
                self._refused.clear()
                self._metrics.reloaded("files", succeeded=True)
            return result

    async def refresh(self) -> bool:
        """Have each part read its files again, as far as it can use them; the settings stay.

        Unlike a reload, a file that cannot be used, for whatever reason, holds back no other: a
        token that was revoked must not count on because a certificate, or the policy, is broken.
        Log and count a refusal once, however often this is tried again; raise for none. Return
        whether nothing was refused.
        """
        async with self._one_at_a_time:
            settings = self._settings.current
            prepared: dict[int, Callable[[], None]] = {}
            refused: dict[int, str] = {}
            for number, prepare in enumerate(self._parts):
                try:
                    prepared[number] = await asyncio.to_thread(prepare, settings)
                except CannotReload as failure:
                    refused[number] = str(failure)
                    if failure.rest:
                        prepared[number] = failure.rest
                except CannotAudit as failure:
                    refused[number] = str(failure)
                except Exception as defect:
                    refused[number] = f"cannot read them: {defect_in(defect)}"
            for number, apply in prepared.items():
                try:
                    apply()
                except Exception as defect:
                    refused[number] = f"cannot apply them: {defect_in(defect)}"
            for number, why in refused.items():
                cause = "; ".join(why.splitlines())
                if self._refused.get(number) != cause:
                    log.error("cannot read changed files: they change nothing", cause=cause)
                refused[number] = cause
            if not refused or refused != self._refused:
                self._metrics.reloaded("files", succeeded=not refused)
            self._refused = refused
            if not refused:
                log.info("files read again")
            return not refused

    async def _reload(self, read: Callable[[], LoadedSettings]) -> ReloadResult:
        old = self._settings.current
        try:
            wanted = (await asyncio.to_thread(read)).settings
            found = changes(old, wanted)
            live = [change for change in found if self._is_live(change, wanted)]
            new = take_over(old, wanted, [change.field for change in live])
            if why := limits_too_low(new):
                raise ConfigError(f"cannot run jobs: {why}")
            keys = await asyncio.to_thread(open_keys, new)
            apply_to_parts = await asyncio.to_thread(self._prepare, new)
            switch_redis = self._tenants.server.prepare_reconnect(redis_access(new))
        except _CANNOT as failure:
            cause = "; ".join(str(failure).splitlines())
            log.error("cannot reload: nothing changed", cause=cause)
            return ReloadResult(cause)
        for change in found:
            if change in live:
                log.info("setting changed", setting=change.field, old=change.old, new=change.new)
            else:
                log.warning(
                    "setting needs a restart", setting=change.field, old=change.old, new=change.new
                )
        for change in live:  # The log has their values.
            audit_change(self._auditor, "setting", setting=change.field)
        switch_redis()
        for apply in apply_to_parts:
            apply()
        await self._apply(new, keys)
        log.info("reloaded", changed=len(live), need_restart=len(found) - len(live))
        return ReloadResult(need_restart=[each.field for each in found if each not in live])

    def _prepare(self, new: Settings) -> Sequence[Callable[[], None]]:
        return [prepare(new) for prepare in self._parts]

    def _is_live(self, change: Change, wanted: Settings) -> bool:
        if change.field == "max_module_bytes":
            # The gRPC server was created with a largest message size.
            return wanted.max_module_bytes <= self._largest_module_bytes
        if change.field == "host_store_bytes":
            # A store that was off at the start does not exist, and one that is on would have to
            # delete all that it holds.
            return self._tenants.default.host.is_on and wanted.effective_host_store_bytes > 0
        if change.field in _TLS_FILES:
            # The addresses that are open speak TLS, and ask callers for certificates, or do not.
            before = getattr(self._settings.current, change.field)
            return bool(before) == bool(getattr(wanted, change.field))
        return change.live

    async def _apply(self, new: Settings, keys: Keys) -> None:
        self._settings.current = new
        self._limits.current = limits_of(new)
        self._traffic.current = traffic_limits(new)
        self._tenants.resize(new)
        await self._tenants.write_engines()
        logs.configure(new.log_format, new.log_level, sys.stderr)
        before = self._sealer.keys, self._sealer.max_age_s
        # In a thread, since it waits for a look into the key directory that is under way.
        await asyncio.to_thread(self._sealer.use, keys, new.value_max_age_s)
        changed = key_changes(before[0], keys)
        for what, about in changed:
            audit_change(self._auditor, what, **about)
        if changed or before[1] != new.value_max_age_s:
            dropped = await self._tenants.recheck(self._sealer)
            if dropped:
                log.info("artifacts dropped from memory: their key is not trusted", count=dropped)
