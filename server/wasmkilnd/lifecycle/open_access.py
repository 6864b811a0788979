"""Open the guard, and replace what it knows when the files that say who may do what change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from wasmkilnd.access.guard import Access, AccessGuard, read_access
from wasmkilnd.access.jwt import CannotFetch
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.reload import CannotReload
from wasmkilnd.model import Reloadable
from wasmkilnd.settings import Settings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

log = structlog.get_logger("wasmkilnd")


class OpenAccess:
    """The guard and the policy in force. For one event loop."""

    def __init__(
        self,
        settings: Reloadable[Settings],
        client_cas: Callable[[], Sequence[Certificate]] = tuple,
    ) -> None:
        """Read who may do what. It may block: call it in a thread. Raises AccessUnusable.

        ``client_cas`` returns the CAs of callers' certificates that are in force now.
        """
        self._settings = settings
        self._changed: Callable[[Access, Access], None] = lambda _before, _after: None
        self.guard = AccessGuard(client_cas=client_cas)
        access, _ = read_access(settings.current)
        self.guard.replace(self._with_keys(access))
        self.policy = Reloadable(access.policy)
        """The policy in force."""
        self.next_policy = access.policy
        """What ``prepare`` has read last: parts that are prepared after it find it here."""

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read everything again; see ``reload.Prepare``."""
        access, causes = read_access(settings, self.guard.access)
        self.next_policy = access.policy
        # A file that changed is no reason to wait for a URL: a revoked token must not count on.
        fetch = settings is not self._settings.current and not causes
        with_keys = self._with_keys(access) if fetch else access

        def apply() -> None:
            before, after, issuer = self.guard.access, with_keys, access.issuer
            known = before.issuer
            if after is access and issuer and known and issuer.url and issuer.url == known.url:
                after = replace(access, issuer=replace(issuer, keys=known.keys))
            self.policy.current = after.policy
            self.guard.replace(after)
            # Last, since whatever fails here must not keep anybody's access.
            self._changed(before, self.guard.access)

        if causes:
            raise CannotReload("\n".join(causes), apply)
        return apply

    def on_change(self, call: Callable[[Access, Access], None]) -> None:
        """Have ``call`` called with what counted before and what counts now, at each reload."""
        self._changed = call

    def _with_keys(self, access: Access) -> Access:
        """Return ``access`` with the keys of a URL, if they can be fetched."""
        if access.issuer and access.issuer.url:
            try:
                return replace(access, issuer=asyncio.run(self.guard.fetch(access.issuer)))
            except CannotFetch as failure:
                log.error("cannot fetch the keys of JSON Web Tokens yet", cause=str(failure))
        return access


async def open_access(
    settings: Reloadable[Settings], client_cas: Callable[[], Sequence[Certificate]] = tuple
) -> OpenAccess:
    """Read who may do what. Raises CannotStart."""
    try:
        return await asyncio.to_thread(OpenAccess, settings, client_cas)
    except AccessUnusable as failure:
        raise CannotStart(str(failure)) from None
