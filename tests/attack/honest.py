"""Honest callers. Their calls must not fail, whatever the attacker does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import aiohttp
from wasmkiln import AsyncClient
from wasmkiln.attestation import TrustedKeys

from tests.attack.target import Target
from tests.e2e import wasm
from tests.soak.ledger import WRONG, Ledger

DEADLINE_S = 5.0
# Of calls that wait for a worker, which an attacker's compiles may hold for 20 s.
TIMEOUT_S = 60.0
ENGINE = "wasmtime-50.0.1"
HIT = "memory hit"
Act = Callable[[], Awaitable[None]]
# No two runs of one daemon compile the same.
_tags = count(random.SystemRandom().randrange(2**30))


class Failed(Exception):  # noqa: N818 - an outcome
    """A call failed; the message says how."""


class Wrong(Exception):  # noqa: N818 - an outcome
    """An answer is wrong; the message says in what way."""


@dataclass(frozen=True)
class Immortal:
    """The daemon that the calls go to; nobody ends it."""

    doomed_s: float = float("inf")


@dataclass
class Honest:
    """All honest callers, and the outcomes of their calls."""

    target: Target
    trusted: TrustedKeys
    ledger: Ledger = field(default_factory=Ledger)

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call while the context lasts, and then wait for the calls under way."""
        over = asyncio.Event()
        async with AsyncExitStack() as stack:
            kinds: list[tuple[str, float, Act]] = []
            for name, pause_s, make in (
                (HIT, 0.05, self._hit),
                ("compile", 0.5, self._compile),
                ("questions", 0.3, self._questions),
            ):
                client = AsyncClient(self.target.address, max_attempts=1, trusted_keys=self.trusted)
                await stack.enter_async_context(client)
                kinds.append((name, pause_s, await make(client)))
            kinds.append(("scrape", 1.0, self._scrape))
            async with asyncio.TaskGroup() as tasks:
                for name, pause_s, act in kinds:
                    tasks.create_task(self._keep(name, pause_s, act, over))
                try:
                    yield
                finally:
                    over.set()

    async def _keep(self, name: str, pause_s: float, act: Act, over: asyncio.Event) -> None:
        while not over.is_set():
            with self.ledger.call(name, Immortal(), TIMEOUT_S) as call:
                try:
                    await act()
                except Failed as failure:
                    call.outcome, call.said = "FAILED", str(failure)
                except Wrong as wrong:
                    call.outcome, call.wrong = WRONG, str(wrong)
            await asyncio.sleep(pause_s)

    async def _hit(self, client: AsyncClient) -> Act:
        module = wasm.many_functions(300, tag=next(_tags))
        first = await client.compile(module, engine=ENGINE, timeout_s=TIMEOUT_S)

        async def hit() -> None:
            digest = first.header.module_sha256
            again = await client.compile(digest, engine=ENGINE, timeout_s=DEADLINE_S)
            if again.bytes != first.bytes:
                raise Wrong(f"another artifact than before for {digest}")

        return hit

    async def _compile(self, client: AsyncClient) -> Act:
        async def compile_another() -> None:
            await client.compile(
                wasm.many_functions(50, tag=next(_tags)), engine=ENGINE, timeout_s=TIMEOUT_S
            )

        return compile_another

    async def _questions(self, client: AsyncClient) -> Act:
        module = wasm.constant(next(_tags) & 0x3FFFFFFF)

        async def ask() -> None:
            await client.health(timeout_s=DEADLINE_S)
            await client.stats(timeout_s=DEADLINE_S)
            await client.load(module, timeout_s=TIMEOUT_S)
            await client.find_missing([wasm.digest(module)] * 50, timeout_s=DEADLINE_S)

        return ask

    async def _scrape(self) -> None:
        """Scrape and probe as Prometheus and an orchestrator do, over a new connection."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                for page in ("metrics", "readyz"):
                    async with session.get(f"http://{self.target.admin}/{page}") as answer:
                        await answer.read()
                        if answer.status != 200:
                            raise Failed(f"/{page} answered {answer.status}")
        except (aiohttp.ClientError, TimeoutError) as failure:
            raise Failed(f"{type(failure).__name__}: {failure}") from None
