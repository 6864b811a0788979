"""Open the guard, and keep it up to date with the files that say who may do what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from wasmkilnd.access.guard import AccessGuard
from wasmkilnd.access.identities import Identities
from wasmkilnd.access.sources import Sources, files_of, read_sources
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.config.schema import Settings
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.reload import CannotReload
from wasmkilnd.lifecycle.watch import follow, stamps_of
from wasmkilnd.reloadable import Reloadable

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


class OpenAccess:
    """The guard and the policy in force. For one event loop."""

    def __init__(
        self,
        settings: Reloadable[Settings],
        client_cas: Callable[[], Sequence[Certificate]] = tuple,
    ) -> None:
        """``client_cas`` returns the CAs of callers' certificates that are in force now.

        It may block: call it in a thread. Raises AccessUnusable.
        """
        self._settings = settings
        self._client_cas = client_cas
        self._seen = stamps_of(files_of(settings.current))
        sources = read_sources(settings.current)
        self.policy = Reloadable(sources.policy)
        """The policy in force."""
        self.next_policy = sources.policy
        """What ``prepare`` has read last: parts that are prepared after it find it here."""
        self.guard = AccessGuard(
            self._identities(sources), open_health=settings.current.open_health
        )

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read everything again; see ``reload.Prepare``."""
        try:
            sources = read_sources(settings)
        except AccessUnusable as failure:
            raise CannotReload(str(failure)) from None
        self.next_policy = sources.policy
        identities = self._identities(sources)

        def apply() -> None:
            self.policy.current = sources.policy
            self.guard.replace(identities, open_health=settings.open_health)

        return apply

    async def follow(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Await ``changed`` whenever a file has changed, until cancelled."""
        await follow(lambda: files_of(self._settings.current), self._seen, changed)

    def _identities(self, sources: Sources) -> Identities | None:
        if not sources.on:
            return None
        return Identities(sources.policy, sources.tokens, self._client_cas)


async def open_access(
    settings: Reloadable[Settings], client_cas: Callable[[], Sequence[Certificate]] = tuple
) -> OpenAccess:
    """Read who may do what. Raises CannotStart."""
    try:
        return await asyncio.to_thread(OpenAccess, settings, client_cas)
    except AccessUnusable as failure:
        raise CannotStart(str(failure)) from None
