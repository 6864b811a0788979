"""The guard of a daemon."""

from __future__ import annotations

from collections.abc import Callable

from wasmkilnd.model import ANYBODY, Credentials, Entrance, Identity


class OpenGuard:
    """Lets everybody do everything."""

    def admit(
        self, what: str, entrance: Entrance, credentials: Callable[[], Credentials]
    ) -> Identity:
        """Return the identity of everybody."""
        return ANYBODY
