"""Read settings, keys, TLS, access and what else files say again: on SIGHUP, and as files change.

Each part is read by itself. One that cannot be used stays as it was, is named, makes the reload a
failure, and holds no other part back: a token that was revoked must not count on because a
certificate, or the configuration, is broken. The settings are one part, since they are checked
together: with one value that cannot be used, all stay as they were. A file that a setting names is
a part of its own: if it cannot be used, what was in force stays, and the daemon tries again.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import structlog

from wasmkilnd.access.guard import Access, AccessGuard, files_of, read_access
from wasmkilnd.access.jwt import CannotFetch
from wasmkilnd.access.unusable import AccessUnusable, defect_in
from wasmkilnd.model import Limits, Reloadable
from wasmkilnd.options import redis_access
from wasmkilnd.settings import Settings, limits_of
from wasmkilnd.settings_loader import Change, ConfigError, LoadedSettings, changes, take_over
from wasmkilnd.signing.keys import KeysUnusable, open_keys
from wasmkilnd.signing.keys import changes as key_changes
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.audit import Audit, CannotAudit, audit_change
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.tenants import Tenants

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

log = structlog.get_logger("wasmkilnd")

_LOOK_S = 2.0
_TLS_FILES = ("tls_cert_file", "tls_key_file", "tls_client_ca_file")

Prepare: TypeAlias = Callable[[Settings], Callable[[], None]]
"""Reads all that a part takes from settings and the files that they name; returns what applies it.

It runs in a thread, may block, and changes nothing. What it returns runs in the event loop, at
once. Raises CannotReload, or another of ``_CANNOT``."""


class CannotReload(Exception):  # noqa: N818 - says what the daemon cannot do
    """A part cannot use the new settings, or what they name; the message says why."""

    def __init__(self, why: str, rest: Callable[[], None] | None = None) -> None:
        """``rest`` applies what the part can use all the same."""
        super().__init__(why)
        self.rest = rest


_CANNOT = (AccessUnusable, CannotAudit, CannotReload, ConfigError, KeysUnusable)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """How a reload ended."""

    refused: str = ""
    """What it could not use, and why; empty if it could use everything."""
    need_restart: Sequence[str] = ()
    """Settings that have changed, and stay as they were."""
    settings_refused: bool = False
    """Whether the settings are those from before, because those that were read cannot be used."""


@dataclass(eq=False)
class Reloader:
    """Applies what can be applied while everything runs. For one event loop."""

    settings: Reloadable[Settings]
    limits: Reloadable[Limits]
    sealer: Sealer
    tenants: Tenants
    auditor: Audit
    metrics: Metrics
    largest_module_bytes: int
    """Modules above this need a restart."""
    refusal: Callable[[Settings], str]
    """Returns why settings cannot be used as a whole. It may block."""
    parts: Mapping[str, Prepare]
    """What reads files, by what they are called, in the order in which it is applied."""
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    _refused: dict[str, str] = field(default_factory=dict)
    """Why parts could not be read when their files had changed."""

    async def reload(self, read: Callable[[], LoadedSettings]) -> ReloadResult:
        """Read and apply everything; log each change and what cannot be used; raise for neither."""
        async with self._one_at_a_time:
            refused: dict[str, str] = {}
            live: list[Change] = []
            restart: list[Change] = []
            # Another object, so that each part knows that more than files may have changed.
            new = old = self.settings.current.model_copy()
            try:
                wanted = (await asyncio.to_thread(read)).settings
                for change in changes(old, wanted):
                    (live if self._is_live(change, wanted) else restart).append(change)
                new = take_over(old, wanted, [change.field for change in live])
                if why := await asyncio.to_thread(self.refusal, new):
                    raise ConfigError(why)
            except Exception as failure:
                refused["settings"] = _why("settings", failure)
                new, live, restart = old, [], []
            for change in live:
                log.info("setting changed", setting=change.field, old=change.old, new=change.new)
                audit_change(self.auditor, "setting", setting=change.field)  # The log has values.
            for change in restart:
                values = {"old": change.old, "new": change.new}
                log.warning("setting needs a restart", setting=change.field, **values)
            refused |= await self._read_files(new)
            self.limits.current = limits_of(new)
            logs.configure(new.log_format, new.log_level, sys.stderr)
            refused |= await self._read_keys_and_redis(new)
            await self.tenants.write_engines()
            self.metrics.reloaded("settings", succeeded=not refused)
            cause = "; ".join(dict.fromkeys(refused.values()))
            if refused:
                log.error("cannot reload: what cannot be used stays as it was", cause=cause)
            else:  # It read the files too.
                self._refused.clear()
                self.metrics.reloaded("files", succeeded=True)
                log.info("reloaded", changed=len(live), need_restart=len(restart))
            return ReloadResult(cause, [each.field for each in restart], "settings" in refused)

    async def refresh(self) -> bool:
        """Read the files again; the settings stay. Return whether every part could be used.

        Log and count a refusal once, however often this is tried again; raise for none.
        """
        async with self._one_at_a_time:
            before, refused = self._refused, await self._read_files(self.settings.current)
            self._refused = refused
            for name, why in refused.items():
                if before.get(name) != why:
                    log.error("cannot read changed files: they change nothing", cause=why)
            if not refused or refused != before:
                self.metrics.reloaded("files", succeeded=not refused)
            if not refused:
                log.info("files read again")
            return not refused

    async def _read_files(self, new: Settings) -> dict[str, str]:
        """Apply ``new`` and what the files say to each part; return why not, by part."""
        prepared: dict[str, Callable[[], None]] = {}
        refused: dict[str, str] = {}

        def read() -> None:
            for name, prepare in self.parts.items():
                if name == "engines" and new is self.settings.current:
                    continue  # The settings name them, and no file that is watched.
                try:
                    prepared[name] = prepare(new)
                except Exception as failure:
                    refused[name] = _why(name, failure)
                    if rest := getattr(failure, "rest", None):
                        prepared[name] = rest

        await asyncio.to_thread(read)
        self.settings.current = new
        for name, apply in prepared.items():
            try:
                apply()
            except Exception as failure:
                refused[name] = _why(name, failure)
        return refused

    async def _read_keys_and_redis(self, new: Settings) -> dict[str, str]:
        refused: dict[str, str] = {}
        before, age_before_s = self.sealer.keys, self.sealer.max_age_s
        keys = before
        try:
            self.tenants.server.prepare_reconnect(redis_access(new))()
        except Exception as failure:
            refused["redis"] = _why("certificates and password of Redis", failure)
        try:
            keys = await asyncio.to_thread(open_keys, new)
        except Exception as failure:
            refused["keys"] = _why("keys", failure)
        # In a thread, since it waits for a look into the key directory that is under way.
        await asyncio.to_thread(self.sealer.use, keys, new.value_max_age_s)
        changed = key_changes(before, keys)
        for what, about in changed:
            audit_change(self.auditor, what, **about)
        if changed or age_before_s != new.value_max_age_s:
            dropped = await self.tenants.recheck(self.sealer)
            if dropped:
                log.info("artifacts dropped from memory: their key is not trusted", count=dropped)
        return refused

    def _is_live(self, change: Change, wanted: Settings) -> bool:
        if change.field == "max_module_bytes":
            # The gRPC server was created with a largest message size.
            return wanted.max_module_bytes <= self.largest_module_bytes
        if change.field == "host_store_bytes":
            # A store that was off at the start does not exist, and one that is on would have to
            # delete all that it holds.
            return self.tenants.default.host.is_on and wanted.effective_host_store_bytes > 0
        if change.field in _TLS_FILES:
            # The addresses that are open speak TLS, and ask callers for certificates, or do not.
            before = getattr(self.settings.current, change.field)
            return bool(before) == bool(getattr(wanted, change.field))
        return change.live


def _why(what: str, failure: Exception) -> str:
    # What nobody foresaw may quote a secret.
    foreseen = isinstance(failure, _CANNOT)
    why = str(failure) if foreseen else f"cannot read the {what}: {defect_in(failure)}"
    return "; ".join(why.splitlines())


class OpenAccess:
    """The guard and the policy in force. For one event loop."""

    def __init__(
        self,
        settings: Reloadable[Settings],
        auditor: Audit,
        client_cas: Callable[[], Sequence[Certificate]] = tuple,
    ) -> None:
        """Read who may do what. It may block: call it in a thread. Raises AccessUnusable.

        ``client_cas`` returns the CAs of callers' certificates that are in force now.
        """
        self._settings, self._auditor = settings, auditor
        self.guard = AccessGuard(client_cas=client_cas)
        access, _ = read_access(settings.current)
        self.guard.replace(self._with_keys(access))
        self.policy = Reloadable(access.policy)
        """The policy in force."""
        self.next_policy = access.policy
        """What ``prepare`` has read last: parts that are prepared after it find it here."""

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read everything again; see ``Prepare``."""
        access, causes = read_access(settings, self.guard.access)
        self.next_policy = access.policy
        known, wanted = self.guard.access.issuer, access.issuer
        moved = wanted and wanted.url and not (known and known.url == wanted.url)
        # A file that changed is no reason to wait for a URL that was asked before: a revoked token
        # must not count on.
        fetch = not causes and (moved or settings is not self._settings.current)
        with_keys = self._with_keys(access) if fetch else access

        def apply() -> None:
            before, after, issuer = self.guard.access, with_keys, access.issuer
            known = before.issuer
            if after is access and issuer and known and issuer.url and issuer.url == known.url:
                after = replace(access, issuer=replace(issuer, keys=known.keys))
            self.policy.current = after.policy
            self.guard.replace(after)
            # Last, since whatever fails here must not keep anybody's access.
            self._audit(before, self.guard.access)

        if causes:
            raise CannotReload("\n".join(causes), apply)
        return apply

    def _with_keys(self, access: Access) -> Access:
        """Return ``access`` with the keys of a URL, if they can be fetched."""
        if access.issuer and access.issuer.url:
            try:
                return replace(access, issuer=asyncio.run(self.guard.fetch(access.issuer)))
            except CannotFetch as failure:
                log.error("cannot fetch the keys of JSON Web Tokens yet", cause=str(failure))
        return access

    def _audit(self, before: Access, after: Access) -> None:
        if before.on != after.on:
            audit_change(self._auditor, "access", on=after.on)
        if before.policy != after.policy:
            audit_change(self._auditor, "policy", rules=len(after.policy.rules))
        old, new = (
            {each.id for each in it.tokens.all} if it.tokens else set() for it in (before, after)
        )
        if old != new:
            about = {
                "accepted": ",".join(sorted(new - old)),
                "dropped": ",".join(sorted(old - new)),
            }
            audit_change(self._auditor, "tokens", **about)


# Files that change are read without SIGHUP.

Stamps: TypeAlias = tuple[object, ...]


def watched_files(settings: Settings, access: Access) -> Iterable[Path]:
    """Return the files that ``settings`` name and the daemon reads again when they change."""
    tls = (getattr(settings, name) for name in _TLS_FILES)
    return [*files_of(settings, access), *map(Path, filter(None, tls))]


def stamps_of(files: Iterable[Path]) -> Stamps:
    """Return what changes whenever a file is written, replaced, made or removed."""
    return tuple((str(file), *_stamp(file)) for file in files)


def _stamp(file: Path) -> tuple[object, ...]:
    try:
        it = file.stat()
    except (OSError, ValueError) as failure:  # ValueError for a path that no file can have
        return type(failure), getattr(failure, "errno", None)
    return it.st_dev, it.st_ino, it.st_mtime_ns, it.st_ctime_ns, it.st_size


def follow(
    files: Callable[[], Iterable[Path]],
    seen: Stamps,
    changed: Callable[[], bool],
    stop: threading.Event,
    look_s: float = _LOOK_S,
) -> None:
    """Call ``changed`` whenever ``files`` have changed since ``seen``, until ``stop``.

    For a thread of its own: a file system that hangs holds up nothing else. ``changed`` returns
    whether it could use all of them. Files may be written in several steps: so wait until two looks
    find them the same. Whatever fails is tried again at the next look: a revoked token counts until
    this has read that it is.
    """
    looked, whole, pause_s = seen, True, look_s
    while not stop.wait(pause_s):
        try:
            now = stamps_of(files())
            stable, looked = now == looked, now
            pause_s = look_s if stable else look_s / 2
            if stable and (now != seen or not whole):
                whole = changed()
                seen = now
        except Exception:
            if not stop.is_set():
                log.exception("a defect keeps changed files from being read")
