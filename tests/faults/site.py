"""What the faults affect: a Redis, its daemons, and perhaps a bad line between them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from wasmkiln.attestation import TrustedKeys
from wasmkilnd.signing.keys import KeyStore

from tests.e2e.daemon import Daemon, state_with
from tests.faults.callers import Caller
from tests.faults.material import ENGINE
from tests.faults.proxy import Proxy
from tests.servers.redis_server import RedisServer, binary_of, redis_server

DAEMONS = 2
PASSWORD = "first"
TIMEOUT_S = 0.5
"""The one time-out that is configured."""
LEASE_S = 5.0
COMPILE_TIMEOUT_S = 8.0
"""With a lease's time, the longest that a forged lease delays a call."""
SETTINGS = {
    "WASMKILN_REDIS_TIMEOUT_S": str(TIMEOUT_S),
    "WASMKILN_HOST_STORE_BYTES": "0",
    # Faults come far more often here than in life: without this each would look to the
    # breaker like one more of the same, and it would ask less and less.
    "WASMKILN_COMPILE_TIMEOUT_S": str(COMPILE_TIMEOUT_S),
    "WASMKILN_MEMORY_BYTES": "1.5MiB",
    "WASMKILN_WORKERS": "1",
    "WASMKILN_DEFAULT_ENGINE": ENGINE,
}


class Server:
    """A Valkey that can be killed and started again with what it had stored."""

    def __init__(self, folder: Path, settings: Sequence[str] = ()) -> None:
        self._folder = folder
        self._settings = ["--requirepass", PASSWORD, "--appendonly", "yes", *settings]
        self._stack = ExitStack()
        self._running: RedisServer | None = None
        self.start()

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._folder / "server.sock"

    def admin(self) -> redis.Redis:
        """Return an operator's client; the caller closes it."""
        return redis.Redis(unix_socket_path=str(self.socket), password=PASSWORD, socket_timeout=30)

    def start(self) -> None:
        """Start it, for the first time or again."""
        self._running = self._stack.enter_context(
            redis_server(binary_of("valkey"), self._folder, self._settings)
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process."""
        assert self._running
        self._running.process.send_signal(number)
        if number is signal.SIGKILL:
            self._running.process.wait()

    def close(self) -> None:
        """End it, whatever its state."""
        self._stack.close()


@dataclass(frozen=True)
class Site:
    """A Redis and its daemons, running."""

    server: Server
    admin: redis.Redis
    proxy: Proxy | None
    daemons: list[Daemon]
    callers: list[Caller]
    """One for each daemon."""
    folder: Path


@asynccontextmanager
async def running_site(folder: Path, *, by_proxy: bool) -> AsyncIterator[Site]:
    """Start everything; it ends with the context."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        server = Server(folder / "redis")
        stack.callback(server.close)
        admin = stack.enter_context(server.admin())
        proxy = stack.enter_context(Proxy(server.socket)) if by_proxy else None
        address = f"127.0.0.1:{proxy.port}" if proxy else str(server.socket)
        environ = {
            **SETTINGS,
            "WASMKILN_REDIS_URL": f"{'redis' if proxy else 'unix'}://:{PASSWORD}@{address}",
            "WASMKILN_KEYS_DIR": str(folder / "keys"),
        }
        keys = KeyStore(folder / "keys").ensure()
        states = [state_with(folder / f"d{number}", ENGINE) for number in range(DAEMONS)]
        daemons = await asyncio.gather(
            *(asyncio.to_thread(Daemon, state, environ=environ) for state in states)
        )
        for daemon in daemons:
            stack.callback(daemon.end)
        trusted = TrustedKeys([keys.public])
        callers = [
            await stack.enter_async_context(Caller(number, daemon.address, trusted))
            for number, daemon in enumerate(daemons)
        ]
        yield Site(server, admin, proxy, list(daemons), callers, folder)
