"""What daemons of a fleet have in Redis, as pins and uses take it, over a real server."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio
from wasmkilnd.errors import TierUnavailable, WrongType
from wasmkilnd.model import Artifact, CacheKey, Held, IsPinned, Module, TierUsage, nothing_pinned

TTL_S = 1000


class Link:
    """Runs commands; raises TierUnavailable, WrongType for a key of another type."""

    def __init__(self, url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(url, socket_timeout=5, retry=None)

    async def run(
        self, *commands: tuple[bytes | str | int, ...], timeout_s: float | None = None
    ) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            try:
                return await pipeline.execute()
            except redis.ResponseError as error:
                kind = WrongType if "WRONGTYPE" in str(error) else TierUnavailable
                raise kind(str(error)) from None
            except redis.RedisError as error:
                raise TierUnavailable(str(error)) from None

    async def usage(self) -> TierUsage:
        try:
            memory = await self._redis.info("memory")
        except redis.RedisError as error:
            raise TierUnavailable(str(error)) from None
        return TierUsage(limit_bytes=int(memory["maxmemory"]))

    async def close(self) -> None:
        await self._redis.aclose()


@dataclass(frozen=True)
class Lacking:
    missing: list[CacheKey | str] = field(default_factory=list)
    expiring: set[str] = field(default_factory=set)


class Store:
    """Values as a RedisStore names and counts them; what is in them is of no account here."""

    def __init__(
        self, url: str, prefix: str = "wasm:", is_pinned: IsPinned = nothing_pinned
    ) -> None:
        self.link = Link(url)
        self.prefix = prefix
        self._is_pinned = is_pinned

    def name_of(self, what: Artifact | Module) -> str:
        if isinstance(what, Module):
            return self._module(what.sha256)
        return self._named(what.module_sha256, f"{what.spec.engine.id}:{what.spec.fingerprint}")

    async def put(self, what: Artifact | Module) -> None:
        module = what.sha256 if isinstance(what, Module) else what.module_sha256
        until = () if self._is_pinned(module) else ("EX", TTL_S)
        with contextlib.suppress(TierUnavailable):
            await self.link.run(("SET", self.name_of(what), b"x" * 20_000, *until))
            if isinstance(what, Artifact):
                member = f"{what.spec.engine.id}:{what.spec.fingerprint}"
                await self.link.run(("SADD", self._set(module), member))

    async def measure(self, modules: Collection[str], *, keep: bool) -> dict[str, Held]:
        found = {}
        for module in modules:
            names = await self._names(module)
            if keep:
                await self.link.run(*(("PERSIST", name) for name in names))
            sizes = await self.link.run(*(("STRLEN", name) for name in names))
            of_module, *of_artifacts = sizes
            found[module] = Held(sum(map(bool, of_artifacts)), int(of_module > 0), sum(sizes))
        return found

    async def release(self, modules: Collection[str]) -> None:
        for module in modules:
            for name in await self._names(module):
                if (await self.link.run(("TTL", name)))[0] == -1:
                    await self.link.run(("EXPIRE", name, TTL_S))

    async def lacking(self, wanted: Sequence[CacheKey | str]) -> Lacking:
        found = Lacking()
        for key in wanted:
            module = key if isinstance(key, str) else key.module_sha256
            names = await self._names(module)
            named = [
                name
                for name in names
                if (name.endswith(key.fingerprint) if isinstance(key, CacheKey) else True)
            ]
            [age] = await self.link.run(("TTL", named[0])) if named else [-2]
            if age == -2:
                found.missing.append(key)
            elif age != -1:
                found.expiring.add(module)
        return found

    async def _names(self, module: str) -> list[str]:
        """Return the names of a module and of its artifacts."""
        [members] = await self.link.run(("SMEMBERS", self._set(module)))
        return [self._module(module), *(self._named(module, each.decode()) for each in members)]

    def _module(self, module: str) -> str:
        return f"{self.prefix}3:module:{{{module}}}"

    def _named(self, module: str, member: str) -> str:
        return f"{self.prefix}3:compiled:{{{module}}}:{member}"

    def _set(self, module: str) -> str:
        return f"{self.prefix}3:of:{{{module}}}"
