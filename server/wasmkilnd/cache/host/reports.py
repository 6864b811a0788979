"""Log and count rejected entries, and what the store cannot do: once per cause."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import structlog

from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.model import Artifact, CacheKey
from wasmkilnd.ports import Recorder

_LOGGED_ONCE = frozenset({Cause.UNSIGNED, Cause.STRANGER})
_MAX_REMEMBERED = 64

_log = structlog.get_logger("wasmkilnd.cache")


class Reports:
    """Logs and counts for the tier ``tier``. Safe for use from any thread."""

    def __init__(self, tier: str, directory: Path, recorder: Recorder) -> None:
        self._tier = tier
        self._directory = os.fspath(directory)
        self._recorder = recorder
        self._lock = threading.Lock()
        self._logged: set[str] = set()
        self._large: set[CacheKey] = set()
        self._troubles: dict[str, str] = {}

    def rejected(self, key: CacheKey, rejected: ValueRejected, *, removed: bool) -> None:
        """Count and log an entry that does not verify."""
        self._recorder.value_rejected(self._tier, rejected.cause.value)
        log = _log.debug if self._was_logged(rejected) else _log.warning
        log(
            "stored value rejected",
            tier=self._tier,
            module=key.module_sha256,
            fingerprint=key.fingerprint,
            cause=rejected.cause.value,
            why=rejected.why,
            removed=removed,
        )

    def trouble(self, doing: str, why: str) -> None:
        """Log why the store cannot do something, once while the cause lasts."""
        with self._lock:
            is_known = why in self._troubles.values()
            self._troubles[doing] = why
        if not is_known:
            _log.warning(
                f"cannot {doing} the host store",
                tier=self._tier,
                directory=self._directory,
                cause=why,
            )

    def too_large(self, artifact: Artifact, limit_bytes: int) -> None:
        """Log an artifact that is larger than the store, once."""
        with self._lock:
            is_known = artifact.key in self._large or len(self._large) >= _MAX_REMEMBERED
            if not is_known:
                self._large.add(artifact.key)
        log = _log.debug if is_known else _log.warning
        log(
            "an artifact is larger than the host store: raise host_store_bytes",
            tier=self._tier,
            module=artifact.module_sha256,
            fingerprint=artifact.key.fingerprint,
            bytes=artifact.size_bytes,
            limit_bytes=limit_bytes,
        )

    def why_not(self, doing: str) -> str:
        """Return why the store cannot do something; empty if it can, or did not try yet."""
        return self._troubles.get(doing, "")

    def works(self, doing: str) -> None:
        """Note that the store can do something; log it if it could not before."""
        if doing in self._troubles:
            with self._lock:
                known = self._troubles.pop(doing, None)
            if known is not None:
                _log.info(f"can {doing} the host store again", tier=self._tier)

    def _was_logged(self, rejected: ValueRejected) -> bool:
        """Return whether an entry was rejected before for the same key that is not trusted."""
        if rejected.cause not in _LOGGED_ONCE:
            return False
        with self._lock:
            if rejected.why in self._logged or len(self._logged) >= _MAX_REMEMBERED:
                return True
            self._logged.add(rejected.why)
            return False
