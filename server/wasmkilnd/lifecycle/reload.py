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
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from wasmkilnd.access.guard import Access, AccessGuard, files_of, read_access
from wasmkilnd.errors import CannotUse
from wasmkilnd.files.operator_files import defect_in
from wasmkilnd.files.threads import Threads, on_disk
from wasmkilnd.model import Limits, Reloadable
from wasmkilnd.settings import Settings, is_live
from wasmkilnd.settings_loader import ConfigError, LoadedSettings, changes, is_foreseen
from wasmkilnd.signing.keys import changes as key_changes
from wasmkilnd.signing.keys import open_keys
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.audit import Audit
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.tenants import Tenants, why_not

log = structlog.get_logger("wasmkilnd")

_LOOK_S = 2.0
_TLS_FILES = ("tls_cert_file", "tls_key_file", "tls_client_ca_file")

# Reads all that a part takes from settings and the files that they name; returns what applies it.
# It runs in a thread, may block, and changes nothing. What it returns runs in the event loop, at
# once. Both raise CannotUse, or another exception of this package; what is to be applied may raise
# it last, of the rest.
Prepare: TypeAlias = Callable[[Settings], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """How a reload ended: what it could not use, and why; which settings changed, and stay."""

    refused: str = ""
    need_restart: Sequence[str] = ()
    settings_refused: bool = False


@dataclass(eq=False)
class Reloader:
    """Applies what can be applied while everything runs. For one event loop.

    Modules above ``largest_module_bytes`` need a restart. ``refusal`` returns why settings cannot
    be used as a whole, and may block. ``files`` reads the files that are watched, by what they are
    called; ``parts`` all else, after them.
    """

    settings: Reloadable[Settings]
    limits: Reloadable[Limits]
    guard: AccessGuard
    sealer: Sealer
    tenants: Tenants
    auditor: Audit
    metrics: Metrics
    largest_module_bytes: int
    refusal: Callable[[Settings], str]
    files: Mapping[str, Prepare]
    parts: Mapping[str, Prepare]
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Why parts could not be read when their files had changed.
    _refused: Mapping[str, str] = field(default_factory=dict)

    async def reload(self, read: Callable[[], LoadedSettings]) -> ReloadResult:
        """Read and apply everything; log each change and what cannot be used; raise for neither."""
        async with self._one_at_a_time:
            new = old = self.settings.current
            keys, age_s = self.sealer.keys, self.sealer.max_age_s
            differ, refused = {}, {}
            try:
                wanted = (await on_disk(read)).settings
                found = changes(old, wanted)
                live = [each for each in found if self._is_live(each, wanted)]
                taken = old.model_copy(update={each: getattr(wanted, each) for each in live})
                if why := await on_disk(self.refusal, taken):
                    raise ConfigError(why)
                new, differ = taken, found
            except Exception as failure:
                refused["settings"] = _why("settings", failure)
            restart = [each for each in differ if getattr(new, each) == getattr(old, each)]
            for setting, (before, after) in differ.items():
                values = {"setting": setting, "old": before, "new": after}
                if setting in restart:
                    log.warning("setting needs a restart", **values)
                else:
                    log.info("setting changed", **values)
                    # Without its values, which the log has.
                    self.auditor.write("change", what="setting", setting=setting)
            refused |= await self._apply(new, {**self.files, **self.parts, "keys": self._use_keys})
            self.limits.current = new.limits
            logs.configure(new.log_format, new.log_level, sys.stderr)
            await self.guard.fetch_keys()
            changed = key_changes(keys, self.sealer.keys)
            for what, about in changed:
                self.auditor.write("change", what=what, **about)
            stale = changed or age_s != self.sealer.max_age_s
            if stale and (dropped := await self.tenants.recheck(self.sealer)):
                log.info("artifacts dropped from memory: their key is not trusted", count=dropped)
            await self.tenants.write_engines()
            self.metrics.reloaded("settings", succeeded=not refused)
            cause = "; ".join(dict.fromkeys(refused.values()))
            if refused:
                log.error("cannot reload: what cannot be used stays as it was", cause=cause)
            else:  # It read the files too.
                self._refused = {}
                self.metrics.reloaded("files", succeeded=True)
                count = len(differ) - len(restart)
                log.info("reloaded", changed=count, need_restart=len(restart))
            return ReloadResult(cause, restart, "settings" in refused)

    async def refresh(self) -> bool:
        """Read the files again; the settings stay. Return whether every part could be used.

        Log and count a refusal once, however often this is tried again; raise for none.
        """
        async with self._one_at_a_time:
            before, refused = self._refused, await self._apply(self.settings.current, self.files)
            issuer = self.guard.access.issuer
            if issuer and not issuer.keys:
                await self.guard.fetch_keys()
            if refused and refused != before:
                cause = "; ".join(dict.fromkeys(refused.values()))
                log.error("cannot read changed files: they change nothing", cause=cause)
            if refused != before or not refused:
                self.metrics.reloaded("files", succeeded=not refused)
            if not refused:
                log.info("files read again")
            self._refused = refused
            return not refused

    async def _apply(self, new: Settings, parts: Mapping[str, Prepare]) -> dict[str, str]:
        """Apply ``new`` and what the files say to each part; return why not, by part."""
        refused: dict[str, str] = {}

        def tried(name: str, work: Callable[[], Any]) -> Any:
            try:
                return work()
            except Exception as failure:
                refused[name] = _why(name, failure)
                return None

        def read() -> dict[str, Any]:
            return {name: tried(name, partial(prepare, new)) for name, prepare in parts.items()}

        prepared = await on_disk(read)
        self.settings.current = new
        for name, apply in prepared.items():
            if apply:
                tried(name, apply)
        return refused

    def _use_keys(self, new: Settings) -> Callable[[], None]:
        """Use new keys before returning: that waits for a look into the directory of keys."""
        keys = self.sealer.keys
        try:
            keys = open_keys(new)
        finally:
            self.sealer.use(keys, new.value_max_age_s)
        return lambda: None

    def _is_live(self, name: str, wanted: Settings) -> bool:
        if name == "max_module_bytes":
            # The gRPC server was created with a largest message size.
            return wanted.max_module_bytes <= self.largest_module_bytes
        if name == "host_store_bytes":
            # A store that was off at the start does not exist, and one that is on would have to
            # delete all that it holds.
            return self.tenants.default.host.is_on and wanted.effective_host_store_bytes > 0
        if name in _TLS_FILES:
            # The addresses that are open speak TLS, and ask callers for certificates, or do not.
            return bool(getattr(self.settings.current, name)) == bool(getattr(wanted, name))
        return is_live(name)


def _why(what: str, failure: Exception) -> str:
    if is_foreseen(failure):
        return "; ".join(str(failure).splitlines())
    return f"cannot read the {what}: {defect_in(failure)}"  # Its own text may quote a secret.


def prepare_access(
    guard: AccessGuard, tenants: Tenants, auditor: Audit, new: Settings
) -> Callable[[], None]:
    """Read again who may do what, but the keys of a URL; see ``Prepare``.

    Too many namespaces keep no policy from being in force: those that are served stay.
    """
    after, causes = read_access(new, guard.access)
    why = why_not(after.policy.namespaces)

    def apply() -> None:
        before = guard.access
        old, issuer = before.issuer, after.issuer
        if old and issuer and issuer.url and issuer.url == old.url:
            guard.replace(replace(after, issuer=replace(issuer, keys=old.keys)))
        else:
            guard.replace(after)
        if not why:
            tenants.serve(guard.access.policy.namespaces, new)
        # Last, since whatever fails here must not keep anybody's access.
        _audit_access(auditor, before, guard.access)
        if causes or why:
            raise CannotUse("\n".join(filter(None, (*causes, why))))

    return apply


def _audit_access(auditor: Audit, before: Access, after: Access) -> None:
    if before.on != after.on:
        auditor.write("change", what="access", on=after.on)
    if before.policy != after.policy:
        auditor.write("change", what="policy", rules=len(after.policy.rules))
    old, new = (
        {each.id for each in it.tokens.all} if it.tokens else set() for it in (before, after)
    )
    if old != new:
        accepted, dropped = ",".join(sorted(new - old)), ",".join(sorted(old - new))
        auditor.write("change", what="tokens", accepted=accepted, dropped=dropped)


# Files that change are read without SIGHUP.

# What changes whenever a file is written, replaced, made or removed.
Stamps: TypeAlias = Mapping[Path, object]


def watched_files(settings: Settings, access: Access) -> Iterable[Path]:
    """Return the files that ``settings`` name and the daemon reads again when they change."""
    tls = (getattr(settings, name) for name in _TLS_FILES)
    return [*files_of(settings, access), *map(Path, filter(None, tls))]


def stamps_of(files: Iterable[Path]) -> Stamps:
    """Return the stamp of each file."""
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> object:
    try:
        it = file.stat()
    except (OSError, ValueError) as failure:  # ValueError for a path that no file can have
        return repr(failure)
    return it.st_dev, it.st_ino, it.st_mtime_ns, it.st_ctime_ns, it.st_size


async def follow(
    files: Callable[[], Iterable[Path]],
    seen: Stamps,
    changed: Callable[[], Awaitable[bool]],
    look_s: float = _LOOK_S,
) -> None:
    """Call ``changed`` whenever ``files`` have changed since ``seen``, until cancelled.

    It looks in a thread of its own: a file system that hangs holds up nothing else. ``changed``
    returns whether it could use all of them. Files may be written in several steps: so wait until
    two looks find them the same. Whatever fails is tried again at the next look: a revoked token
    counts until this has read that it is.
    """
    loop, thread = asyncio.get_running_loop(), Threads(1, "files")
    looked, whole = seen, True
    while True:
        await asyncio.sleep(look_s)
        try:
            now = await loop.run_in_executor(thread, lambda: stamps_of(files()))
            stable, looked = now == looked, now
            if stable and (now != seen or not whole):
                whole, seen = await changed(), now
        except Exception:
            log.exception("a defect keeps changed files from being read")
