"""Honest callers. Their calls must not fail, whatever the attacker does."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import aiohttp
from wasmkiln import AsyncClient, WasmkilnError
from wasmkiln.attestation import TrustedKeys

from tests.attack.ways import ENGINE, Target
from tests.e2e import wasm

DEADLINE_S = 5.0
# Of calls that wait for a worker, which an attacker's compiles may hold for 20 s.
TIMEOUT_S = 60.0
HIT = "memory hit"
Act = Callable[[], Awaitable[None]]
# No two runs of one daemon compile the same.
_tags = count(random.SystemRandom().randrange(2**29))


@dataclass(frozen=True)
class Call:
    """One call, or some that belong together."""

    kind: str
    began_s: float
    seconds: float
    failed: str
    """How it failed; empty if it did not."""


@dataclass
class Honest:
    """All honest callers, and the calls that have ended."""

    target: Target
    trusted: TrustedKeys
    calls: list[Call] = field(default_factory=list)

    def between(self, began_s: float, ended_s: float) -> list[Call]:
        """Return the calls that began within a span of time, in that order."""
        found = [call for call in self.calls if began_s <= call.began_s < ended_s]
        return sorted(found, key=lambda call: call.began_s)

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call while the context lasts, and then wait for the calls under way."""
        over = asyncio.Event()
        async with AsyncExitStack() as stack:
            kinds: list[tuple[str, float, Act]] = [("scrape", 1.0, self._scrape)]
            for name, pause_s, make in (
                (HIT, 0.05, self._hit),
                ("compile", 0.5, self._compile),
                ("questions", 0.3, self._questions),
            ):
                client = AsyncClient(self.target.address, max_attempts=1, trusted_keys=self.trusted)
                await stack.enter_async_context(client)
                kinds.append((name, pause_s, await make(client)))
            async with asyncio.TaskGroup() as tasks:
                for kind in kinds:
                    tasks.create_task(self._keep(*kind, over))
                try:
                    yield
                finally:
                    over.set()

    async def _keep(self, kind: str, pause_s: float, act: Act, over: asyncio.Event) -> None:
        while not over.is_set():
            began_s, failed = time.monotonic(), ""
            try:
                await act()
            except (WasmkilnError, AssertionError, aiohttp.ClientError, TimeoutError) as failure:
                failed = f"{type(failure).__name__}: {failure}"
            self.calls.append(Call(kind, began_s, time.monotonic() - began_s, failed))
            await asyncio.sleep(pause_s)

    async def _hit(self, client: AsyncClient) -> Act:
        module = wasm.many_functions(300, tag=next(_tags))
        first = await client.compile(module, engine=ENGINE, timeout_s=TIMEOUT_S)

        async def hit() -> None:
            digest = first.header.module_sha256
            again = await client.compile(digest, engine=ENGINE, timeout_s=DEADLINE_S)
            assert again.bytes == first.bytes, f"another artifact than before for {digest}"

        return hit

    async def _compile(self, client: AsyncClient) -> Act:
        async def compile_another() -> None:
            module = wasm.many_functions(50, tag=next(_tags))
            await client.compile(module, engine=ENGINE, timeout_s=TIMEOUT_S)

        return compile_another

    async def _questions(self, client: AsyncClient) -> Act:
        module = wasm.constant(next(_tags))

        async def ask() -> None:
            await client.health(timeout_s=DEADLINE_S)
            await client.stats(timeout_s=DEADLINE_S)
            await client.load(module, timeout_s=TIMEOUT_S)
            await client.find_missing([wasm.digest(module)] * 50, timeout_s=DEADLINE_S)

        return ask

    async def _scrape(self) -> None:
        """Scrape and probe as Prometheus and an orchestrator do, over a new connection."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for page in ("metrics", "readyz"):
                async with session.get(f"http://{self.target.admin}/{page}") as answer:
                    await answer.read()
                    assert answer.status == 200, f"/{page} answered {answer.status}"
