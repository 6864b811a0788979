"""Stores on real servers, for tests that may look at each command and come between two."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any

from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.model import Artifact, IsPinned, Module, nothing_pinned
from wasmkilnd.redis.servers import Command, RedisAccess, RedisLink, connect
from wasmkilnd.signing.sealer import Sealer

from tests.contract.sealing import OURS, sealer
from tests.doubles.notes import Notes
from tests.servers.deployments import NO_ACCESS, Access

TTL_S = 7 * 24 * 3600
SEALER = sealer(OURS)


class WatchedLink(RedisLink):
    """Notes each command, and calls ``before`` with it first."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked: list[Command] = []
        self.waits: list[tuple[str, float | None]] = []
        self.before: Callable[[Command], Awaitable[None]] | None = None

    async def run(self, *commands: Command, timeout_s: float | None = None) -> list[Any]:
        for command in commands:
            self.asked.append(command)
            self.waits.append((str(command[0]), timeout_s))
            if before := self.before:
                await before(command)
        return await super().run(*commands, timeout_s=timeout_s)

    def calls(self, name: str) -> int:
        """Return how often a command was asked."""
        return sum(command[0] == name for command in self.asked)

    def once_before(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do ``work`` before the next command of this name."""

        async def before(command: Command) -> None:
            if command[0] == name:
                self.before = None
                await work()

        self.before = before


class Site:
    """A store, and what a test needs around it."""

    def __init__(self, store: RedisStore, link: WatchedLink, notes: Notes) -> None:
        self.store = store
        self.link = link
        self.notes = notes

    async def run(self, *command: bytes | str | int) -> Any:
        """Run a command of anybody's."""
        return (await RedisLink.run(self.link, command))[0]

    def name(self, what: Artifact | Module) -> bytes:
        """Return under which key ``what`` is stored."""
        if isinstance(what, Module):
            return self.store.prefix.encode() + b"3:module:{%b}" % what.sha256.encode()
        member = f"{what.spec.engine.id}:{what.spec.fingerprint}"
        module = what.module_sha256
        return f"{self.store.prefix}3:compiled:{{{module}}}:{member}".encode()

    def set_of(self, module_sha256: str) -> bytes:
        """Return the name of the set of a module's artifacts."""
        return f"{self.store.prefix}3:of:{{{module_sha256}}}".encode()

    async def names(self, kind: str = "") -> list[bytes]:
        """Return the names of all keys that begin with the prefix and ``kind``."""
        # The prefixes of these tests have nothing in them that a pattern reads otherwise.
        pages = self.link.scan(f"{self.store.prefix}{kind}*".encode())
        return sorted({name async for page in pages for name in page})

    async def value(self, what: Artifact | Module) -> bytes:
        """Return the bytes of a stored value."""
        value = await self.run("GETRANGE", self.name(what), 0, -1)
        assert isinstance(value, bytes)
        return value


def open_link(
    url: str,
    access: Access = NO_ACCESS,
    *,
    timeout_s: float = 5.0,
    retry_max_s: float = 0.3,
    kind: type[RedisLink] = RedisLink,
) -> Any:
    """Return a link that is quick to come back, of which tests may replace methods."""
    server = connect(url, RedisAccess(**asdict(access)), timeout_s=timeout_s)
    link = kind(server, timeout_s=timeout_s)
    link.retry_max_s = retry_max_s
    return link


def open_store(
    link: RedisLink,
    prefix: str = "wasm:",
    *,
    notes: Notes | None = None,
    signer: Sealer = SEALER,
    limit_bytes: Callable[[], int] = lambda: 1 << 40,
    is_pinned: IsPinned = nothing_pinned,
) -> RedisStore:
    """Return the store of a namespace over ``link``."""
    return RedisStore(
        link,
        prefix,
        signer,
        notes or Notes(),
        ttl_s=TTL_S,
        artifact_bytes=limit_bytes,
        module_bytes=limit_bytes,
        is_pinned=is_pinned,
        reports_usage=True,
    )


@contextlib.asynccontextmanager
async def site(
    url: str,
    access: Access = NO_ACCESS,
    *,
    prefix: str = "",
    timeout_s: float = 5.0,
    **options: Any,
) -> AsyncIterator[Site]:
    """Open a store, by default below a prefix of its own."""
    link, notes = open_link(url, access, timeout_s=timeout_s, kind=WatchedLink), Notes()
    prefix = prefix or f"wasm:ns:{secrets.token_hex(6)}:"
    store = open_store(link, prefix, notes=notes, **options)
    try:
        yield Site(store, link, notes)
    finally:
        await store.close()
        await link.close()
