"""List and verify the entries of the host store, beside daemons that use it, or with none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from wasmkiln.attestation import peek

from wasmkilnd.cache.host_store import (
    HostOptions,
    cannot,
    check_root,
    entries_in,
    measure,
    open_entry,
    remove_entry,
)
from wasmkilnd.cache.value.names import ValueKey
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.maintenance.inventory import Listed, trust_of
from wasmkilnd.maintenance.scrub import KEPT, Finding, Scrubbed
from wasmkilnd.model import Artifact, CacheKey
from wasmkilnd.ports import Verifier

_NO_TTL = -1


def host_values(options: HostOptions, verifier: Verifier) -> Iterator[Listed]:
    """Return all entries, by their headers alone. Raises TierUnavailable."""
    check_root(options.directory)
    for path, key in entries_in(options.directory):
        stored_bytes, _ = measure(path)
        if stored_bytes:
            named = ValueKey(key.module_sha256, key.fingerprint)
            try:
                with open_entry(options, key) as entry:
                    if entry:
                        yield _listed(named, stored_bytes, entry.described(), verifier)
            except ValueRejected as rejected:
                yield Listed(named, stored_bytes, _NO_TTL, rejected)
            except OSError as failure:
                raise cannot("read an entry", failure) from None


def _listed(named: ValueKey, stored_bytes: int, artifact: Artifact, verifier: Verifier) -> Listed:
    key = CacheKey(named.module_sha256, named.fingerprint)
    if artifact.key != key:
        raise ValueRejected(Cause.WRONG_KEY, "the entry belongs to another key")
    spec, attested = artifact.spec, peek(artifact.attestation)
    return Listed(
        named,
        stored_bytes,
        _NO_TTL,
        trust=trust_of(verifier.verify(artifact, key)),
        signer=attested[1] if attested else "",
        raw_bytes=artifact.size_bytes,
        kind=artifact.kind,
        engine=spec.engine.id,
        target=spec.target,
        cpu=spec.cpu,
        changed_settings=tuple(sorted(spec.changed_settings.items())),
        finished_on=attested[0].finished_on if attested else "",
    )


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
        self._options = options
        self._verifier = verifier
        self._dry_run = dry_run
        self._report_finding = report_finding
        self._untrusted: list[tuple[Path, CacheKey]] = []
        self.report = Scrubbed()
        self.bytes_read = 0

    @property
    def trusts_no_value(self) -> bool:
        """Whether entries of untrusted keys were kept because no entry verified."""
        return bool(self._untrusted) and not self.report.good

    def run(self, advance: Callable[[], None]) -> None:
        """Verify all entries that there are now; call ``advance`` for each."""
        check_root(self._options.directory)
        for path, key in entries_in(self._options.directory):
            self._check(path, key)
            advance()
        for path, key in self._untrusted:
            if self.report.good:
                self._bad(path, key, Cause.STRANGER.value, "no key that is trusted here signed it")
            else:
                self._count(path, Cause.STRANGER.value, KEPT, deleted=False)

    def _check(self, path: Path, key: CacheKey) -> None:
        for is_last in (False, True):  # Twice, since a daemon may be removing it.
            try:
                if self._verified(key):
                    self.report.artifacts += 1
                else:
                    self.report.gone += 1
                return
            except ValueRejected as rejected:
                if not is_last:
                    continue
                if rejected.cause is Cause.STRANGER:
                    self._untrusted.append((path, key))
                else:
                    self._bad(path, key, rejected.cause.value, rejected.why)

    def _verified(self, key: CacheKey) -> bool:
        """Verify an entry; return whether it was there. Raises ValueRejected."""
        try:
            with open_entry(self._options, key) as entry:
                if entry is None:
                    return False
                artifact = entry.verified(self._verifier)
                entry.check(artifact)
                self.bytes_read += artifact.size_bytes
                return True
        except OSError as failure:
            raise cannot("read an entry", failure) from None

    def _bad(self, path: Path, key: CacheKey, cause: str, why: str) -> None:
        deleted = not self._dry_run and remove_entry(self._options, key)
        self._count(path, cause, why, deleted=deleted)

    def _count(self, path: Path, cause: str, why: str, *, deleted: bool) -> None:
        self.report.bad[cause] += 1
        self.report.deleted += deleted
        self._report_finding(Finding(os.fsencode(path), cause, why, deleted))
