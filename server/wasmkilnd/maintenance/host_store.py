"""List and verify the entries of the host store, beside daemons that use it, or with none."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from wasmkiln.host_layout import HEAD

from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.entry import MAX_HEAD_BYTES, OpenEntry, disk_bytes_at, value_head
from wasmkilnd.cache.host.folders import cannot, open_entry, open_root
from wasmkilnd.cache.host.options import HostOptions
from wasmkilnd.cache.host.sweep import entries_of, fingerprints_in
from wasmkilnd.cache.value.names import ValueKey
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.maintenance.inventory import Listed, listed_by_head
from wasmkilnd.maintenance.scrub import KEPT, Finding, Scrubbed
from wasmkilnd.model import CacheKey
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wire import payload_views

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_TTL = -1


def host_values(directory: Path, verifier: Sealer) -> Iterator[Listed]:
    """Return all entries, by their heads alone. Raises TierUnavailable."""
    os.close(open_root(directory))
    for fingerprint in fingerprints_in(directory):
        for path, key in entries_of(directory, fingerprint):
            if stored_bytes := disk_bytes_at(path):
                named = ValueKey(key.module_sha256, key.fingerprint)
                listed = listed_by_head(named, _head(path), verifier)
                yield replace(listed, stored_bytes=stored_bytes, ttl_s=_NO_TTL)


class HostScrub:
    """Verifies every entry completely, and removes the bad ones. Raises TierUnavailable.

    As a scrub of Redis, it keeps the entries of untrusted keys if no entry at all verifies: the
    keys at hand are then most likely the wrong ones.
    """

    def __init__(
        self,
        options: HostOptions,
        verifier: Sealer,
        *,
        dry_run: bool,
        report_finding: Callable[[Finding], None],
    ) -> None:
        self._disk = Disk(options)
        self._verifier = verifier
        self._dry_run = dry_run
        self._report_finding = report_finding
        self._untrusted: list[CacheKey] = []
        self.report = Scrubbed()
        self.bytes_read = 0

    @property
    def trusts_no_value(self) -> bool:
        """Whether entries of untrusted keys were kept because no entry verified."""
        return bool(self._untrusted) and not self.report.good

    def run(self, advance: Callable[[], None]) -> None:
        """Verify all entries that there are now; call ``advance`` for each."""
        directory = self._disk.options.directory
        os.close(open_root(directory))
        try:
            for fingerprint in fingerprints_in(directory):
                for _, key in entries_of(directory, fingerprint):
                    self._check(key)
                    advance()
            for key in self._untrusted:
                if self.report.good:
                    self._bad(key, Cause.STRANGER.value, "no key that is trusted here signed it")
                else:
                    self._count(key, Cause.STRANGER.value, KEPT, deleted=False)
            if not self._dry_run:
                self._disk.refresh()
        finally:
            self._disk.close()

    def _check(self, key: CacheKey) -> None:
        try:
            # Twice, since a daemon may be removing it.
            found = self._verifies(key) or self._verified(key)
        except ValueRejected as rejected:
            if rejected.cause is Cause.STRANGER:
                self._untrusted.append(key)
            elif rejected.cause is Cause.VERSION:
                self.report.other_format += 1
            else:
                self._bad(key, rejected.cause.value, rejected.why)
            return
        if found:
            self.report.artifacts += 1
        else:
            self.report.gone += 1

    def _verifies(self, key: CacheKey) -> bool:
        with contextlib.suppress(ValueRejected):
            return self._verified(key)
        return False

    def _verified(self, key: CacheKey) -> bool:
        """Verify an entry; return whether it was there. Raises ValueRejected."""
        folder = open_entry(self._disk.options.directory, key)
        if folder is None:
            return False
        try:
            entry = OpenEntry(folder, key, self._verifier)
            opened = entry.open_head()
            artifact, _ = entry.verify(opened, keep=True)
            self.bytes_read += artifact.size_bytes
            digest = hashlib.sha256()
            for payload in payload_views(artifact.frames):
                digest.update(payload)
            if digest.hexdigest() != artifact.sha256:
                raise ValueRejected(Cause.MISMATCH, "the bytes do not have the signed digest")
            return True
        except OSError as failure:
            raise cannot("read an entry", failure) from None
        finally:
            os.close(folder)

    def _bad(self, key: CacheKey, cause: str, why: str) -> None:
        deleted = not self._dry_run and self._disk.remove(key)
        self._count(key, cause, why, deleted=deleted)

    def _count(self, key: CacheKey, cause: str, why: str, *, deleted: bool) -> None:
        self.report.bad[cause] += 1
        self.report.deleted += deleted
        name = os.fsencode(self._disk.path(key))
        self._report_finding(Finding(name, cause, why, deleted))


def _head(path: Path) -> bytes:
    """Return the head of an entry's value, as far as it can be long; empty for none."""
    try:
        descriptor = os.open(path / HEAD, _READ)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return value_head(file.read(MAX_HEAD_BYTES + 1))
