"""Open the guard, and replace what it knows when the files that say who may do what change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from wasmkilnd.access.guard import AccessGuard
from wasmkilnd.access.identities import Identities
from wasmkilnd.access.key_fetcher import CannotFetch, KeyFetcher, fetch_keys
from wasmkilnd.access.key_set import KeySet
from wasmkilnd.access.sources import Sources, read_again, read_sources
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.access.web_tokens import VerifiedWebTokens
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.reload import CannotReload
from wasmkilnd.reloadable import Reloadable
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
        self._client_cas = client_cas
        sources = read_sources(settings.current)
        self._sources = sources
        self._changed: Callable[[Sources, Sources], None] = lambda _before, _after: None
        self.policy = Reloadable(sources.policy)
        """The policy in force."""
        self.next_policy = sources.policy
        """What ``prepare`` has read last: parts that are prepared after it find it here."""
        self._fetcher = KeyFetcher("", KeySet())
        self._fetcher.use(sources.keys_url, self._keys(sources, fetch=True) or KeySet())
        self.guard = AccessGuard(
            self._identities(sources), open_health=settings.current.open_health
        )

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read everything again; see ``reload.Prepare``."""
        sources, causes = read_again(settings, self._sources)
        self.next_policy = sources.policy
        # A file that changed is no reason to wait for a URL: a revoked token must not count on.
        fetch = settings is not self._settings.current and not causes
        keys = self._keys(sources, fetch=fetch)
        identities = self._identities(sources)

        def apply() -> None:
            if keys is not None:
                self._fetcher.use(sources.keys_url, keys)
            self.policy.current = sources.policy
            self.guard.replace(identities, open_health=settings.open_health)
            # Last, since whatever fails here must not keep anybody's access.
            before, self._sources = self._sources, sources
            self._changed(before, sources)

        if causes:
            raise CannotReload("\n".join(causes), apply)
        return apply

    def on_change(self, call: Callable[[Sources, Sources], None]) -> None:
        """Have ``call`` called with what counted before and what counts now, at each reload."""
        self._changed = call

    async def follow_keys(self) -> None:
        """Fetch the keys of JSON Web Tokens now and then, until cancelled."""
        await self._fetcher.run()

    def _keys(self, sources: Sources, *, fetch: bool) -> KeySet | None:
        """Return the keys of JSON Web Tokens; None if those in force stay."""
        if not sources.keys_url:
            return sources.keys
        if not fetch:
            return None
        try:
            return asyncio.run(fetch_keys(sources.keys_url))
        except CannotFetch as failure:
            log.error("cannot fetch the keys of JSON Web Tokens yet", cause=str(failure))
            return None if sources.keys_url == self._fetcher.url else KeySet()

    def _identities(self, sources: Sources) -> Identities | None:
        if not sources.on:
            return None
        web_tokens = None
        if sources.issuer:
            fetcher = self._fetcher
            web_tokens = VerifiedWebTokens(sources.issuer, lambda: fetcher.current, fetcher.want)
        return Identities(sources.policy, sources.tokens, self._client_cas, web_tokens)


async def open_access(
    settings: Reloadable[Settings], client_cas: Callable[[], Sequence[Certificate]] = tuple
) -> OpenAccess:
    """Read who may do what. Raises CannotStart."""
    try:
        return await asyncio.to_thread(OpenAccess, settings, client_cas)
    except AccessUnusable as failure:
        raise CannotStart(str(failure)) from None
