"""Daemons on one Valkey, disk and bucket, which die and come back again and again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from grpc import aio
from wasmkiln import AsyncClient
from wasmkiln.attestation import TrustedKeys
from wasmkiln.v1 import module_service_pb2_grpc

from tests.e2e.daemon import Daemon, state_with
from tests.e2e.programs import WASMKILND
from tests.e2e.signing_keys import KeyDirectory
from tests.soak.modules import ENGINES
from tests.soak.site import AS_ANYBODY, Ground, running_ground

DAEMONS = 3
WORKERS = 2
LEASE_S = 5.0
MODULE_LIMIT_BYTES = 4 * 2**20
SETTINGS = {
    "WASMKILN_HTTP_LISTEN": "127.0.0.1:0",
    # Less than the artifacts of all modules: some are always evicted, and fetched from below.
    "WASMKILN_MEMORY_BYTES": "32MiB",
    "WASMKILN_HOST_STORE_BYTES": "32MiB",
    "WASMKILN_WORKERS": str(WORKERS),
    "WASMKILN_MAX_MODULE_BYTES": str(MODULE_LIMIT_BYTES),
    # More than any of the real modules needs, and less than the hostile ones take. CPU time
    # is what ends those: a limit on the clock would end honest ones on a busy machine.
    "WASMKILN_COMPILE_CPU_S": "6",
    "WASMKILN_COMPILE_TIMEOUT_S": "50",
    "WASMKILN_COMPILE_MEMORY_BYTES": "640MiB",
    "WASMKILN_MAX_ARTIFACT_BYTES": "20MiB",
    # So short that quarantines end, and are doubled, within a run.
    "WASMKILN_QUARANTINE_S": "5",
    "WASMKILN_SHUTDOWN_GRACE_S": "10",
}
# How often a caller tries a daemon without looking whether it is there.
_STUBBORN = 0.05


@dataclass(eq=False)
class Life:
    """One process of a daemon, and its clients."""

    daemon: Daemon
    socket: Path
    """The Unix socket on which it also listens."""
    regulars: AsyncClient = field(init=False)
    strangers: AsyncClient = field(init=False)
    """Clients that connect in another way, so that the daemon takes them for another caller."""
    slow: module_service_pb2_grpc.ModuleServiceStub = field(init=False)
    doomed_s: float = float("inf")
    """When it was told to end, or was killed."""
    held: list[int] = field(default_factory=list)
    """Its memory in bytes, at each tenth of the load."""

    @property
    def lives(self) -> bool:
        """Whether it still runs."""
        return self.doomed_s == float("inf")


@dataclass
class Member:
    """One place in the fleet: a state directory, and one process after the other."""

    state: Path
    trusted: TrustedKeys
    begin: Callable[..., Daemon]
    """Starts a daemon with more flags."""
    lives: list[Life] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    """The exit codes of processes that were ended with SIGTERM."""
    known: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Its clients."""

    @property
    def life(self) -> Life:
        """The present or the last process."""
        return self.lives[-1]

    async def start(self) -> Life:
        """Start a process, and connect to it."""
        path = self.state / f"{len(self.lives)}.sock"
        life = Life(await asyncio.to_thread(self.begin, ["--listen", f"unix:{path}"]), path)
        await self._meet(life)
        self.lives.append(life)
        return life

    async def meet_again(self) -> None:
        """Connect to the process again."""
        await self._meet(self.life)

    async def _meet(self, life: Life) -> None:
        address = life.daemon.address
        life.regulars = self._client(address)
        life.strangers = self._client(f"unix:{life.socket}")
        # Or it would share the regulars' connection.
        channel = aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        life.slow = module_service_pb2_grpc.ModuleServiceStub(channel)
        for each in (life.regulars, life.strangers, channel):
            await self.known.enter_async_context(each)

    async def kill(self) -> None:
        """End the process with SIGKILL."""
        self.life.doomed_s = time.monotonic()
        await asyncio.to_thread(self.life.daemon.kill)

    async def stop(self) -> None:
        """End the process with SIGTERM."""
        self.life.doomed_s = time.monotonic()
        self.exit_codes.append(await asyncio.to_thread(self.life.daemon.stop))

    async def hang_up(self) -> None:
        """Close all connections to all processes."""
        await self.known.aclose()

    async def end(self) -> None:
        """End whatever is left, whatever its state."""
        await self.hang_up()
        if self.lives:
            await asyncio.to_thread(self.life.daemon.end)

    def _client(self, address: str) -> AsyncClient:
        # A second attempt would hide what became of the first.
        return AsyncClient(address, max_attempts=1, trusted_keys=self.trusted)


@dataclass(frozen=True)
class Fleet:
    """All of it, running."""

    ground: Ground
    members: list[Member]
    trusted: TrustedKeys

    def any_life(self, dice: random.Random) -> Life:
        """Return the process of a random member, nearly always of one that runs, if any does."""
        lives = [member.life for member in self.members]
        if dice.random() > _STUBBORN:
            lives = [life for life in lives if life.lives] or lives
        return dice.choice(lives)

    @property
    def lives(self) -> list[Life]:
        """All processes that there were."""
        return [life for member in self.members for life in member.lives]


@asynccontextmanager
async def running_fleet(folder: Path) -> AsyncIterator[Fleet]:
    """Start everything; it ends with the context."""
    async with AsyncExitStack() as stack:
        ground = await asyncio.to_thread(stack.enter_context, running_ground(folder))
        trusted = TrustedKeys([KeyDirectory.of(folder).public])
        (folder / "tmp").mkdir()
        environ = {
            **SETTINGS,
            **ground.environment,
            "WASMKILN_KEYS_DIR": str(folder / "keys"),
            "TMPDIR": str(folder / "tmp"),
        }
        command = ground.disk.enter(*AS_ANYBODY, WASMKILND)
        states = [state_with(folder / f"d{number}", *ENGINES) for number in range(DAEMONS)]
        members = [
            Member(state, trusted, partial(Daemon, state, environ=environ, command=command))
            for state in states
        ]
        for member in members:
            stack.push_async_callback(member.end)
        await asyncio.gather(*(member.start() for member in members))
        yield Fleet(ground, members, trusted)
