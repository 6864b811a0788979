"""``TlsFiles``: what TLS connections are made with now, and what replaces it while calls run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeAlias

import structlog

from wasmkilnd.access.tls.material import TlsMaterial, TlsOptions, load
from wasmkilnd.access.tls.pem import TlsUnusable

log = structlog.get_logger("wasmkilnd")

_LOOK_S = 1.0

_Stamps: TypeAlias = tuple[tuple[int, ...], ...]


class TlsFiles:
    """Holds the material in force. For one event loop; ``current`` may be read from any thread."""

    def __init__(self, options: TlsOptions) -> None:
        """Read and check the files. Raises TlsUnusable."""
        self._options = options
        self._seen = self._looked = _stamps(options)
        self.current: TlsMaterial = load(options)
        """What new connections are made with."""
        self.failures = 0
        """How often changed files could not be used."""
        self._on_change: list[Callable[[], None]] = []

    def on_change(self, call: Callable[[], None]) -> None:
        """Have ``call`` called, in the event loop, right after ``current`` was replaced."""
        self._on_change.append(call)

    def prepare(self, options: TlsOptions) -> Callable[[], None]:
        """Read the files again; return what puts them in force, to be called in the event loop.

        It may block: call it in a thread. Raises TlsUnusable.
        """
        stamps = _stamps(options)
        try:
            material = load(options)
        except TlsUnusable:
            self.failures += 1
            raise
        return lambda: self._apply(options, stamps, material)

    async def follow(self) -> None:
        """Read the files again whenever they have changed, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Read the files again if they have changed, and have not since the last look."""
        options = self._options
        stamps = await asyncio.to_thread(_stamps, options)
        # A certificate and its key are not replaced in one moment: wait until both stay as they
        # are.
        stable, self._looked = stamps == self._looked, stamps
        if stamps == self._seen or not stable:
            return
        self._seen = stamps
        try:
            apply = await asyncio.to_thread(self.prepare, options)
        except TlsUnusable as refusal:
            log.error("cannot reload TLS files: nothing changed", cause=str(refusal))
            return
        if self._options is options:  # A reload may have come first.
            apply()

    def _apply(self, options: TlsOptions, stamps: _Stamps, material: TlsMaterial) -> None:
        before, self.current = self.current, material
        self._options, self._seen = options, stamps
        for call in self._on_change:
            call()
        same = (before.chain_pem, before.client_ca_pem) == (
            material.chain_pem,
            material.client_ca_pem,
        )
        if not same:
            log.info("TLS files reloaded", not_after=material.not_after.isoformat())


def _stamps(options: TlsOptions) -> _Stamps:
    found: list[tuple[int, ...]] = []
    for path in options.files:
        try:
            it = os.stat(path)  # noqa: PTH116 - a text
        except OSError as failure:
            found.append((-1, failure.errno or 0))
        else:
            found.append((it.st_dev, it.st_ino, it.st_mtime_ns, it.st_ctime_ns, it.st_size))
    return tuple(found)
