"""``TlsFiles``: what TLS connections are made with now, and what replaces it while calls run."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from wasmkilnd.access.tls.material import TlsMaterial, TlsOptions, load

log = structlog.get_logger("wasmkilnd")


class TlsFiles:
    """Holds the material in force. For one event loop; ``current`` may be read from any thread."""

    def __init__(self, options: TlsOptions) -> None:
        """Read and check the files. Raises TlsUnusable."""
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
        try:
            material = load(options)
        except Exception:
            self.failures += 1
            raise
        return lambda: self._apply(material)

    def _apply(self, material: TlsMaterial) -> None:
        before, self.current = self.current, material
        for call in self._on_change:
            call()
        same = (before.chain_pem, before.client_ca_pem) == (
            material.chain_pem,
            material.client_ca_pem,
        )
        if not same:
            log.info("TLS files reloaded", not_after=material.not_after.isoformat())
