"""Who may do what: the port that every call and every HTTP request passes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from wasmkilnd.model import Credentials, Entrance, Identity


class Guard(Protocol):
    """Says who calls, and refuses what they may not do. Never waits; safe from one event loop."""

    def admit(
        self, what: str, entrance: Entrance, credentials: Callable[[], Credentials]
    ) -> Identity:
        """Return who calls.

        ``what`` is the path of an RPC, ``/wasmkiln.v1.ModuleService/Load``, or of a page,
        ``/metrics``. ``credentials`` reads what the call brings along; a daemon that asks for no
        identity does not call it. Raises CREDENTIALS_MISSING, CREDENTIALS_INVALID or ROLE_MISSING.
        """
        ...
