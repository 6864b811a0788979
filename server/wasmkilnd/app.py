"""The composition root: builds every part, starts them, and ends them in order."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any

import structlog
from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.banner import banner
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.observed import ObservedTier
from wasmkilnd.cache.remote import CannotOpenRemote, RemoteOptions, open_remote
from wasmkilnd.cache.tiered import TieredCache
from wasmkilnd.compile_service import MAX_FIND_MISSING_KEYS, CompileService
from wasmkilnd.config.load import Loaded
from wasmkilnd.config.machine import cpu_count
from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.isolation import IsolationGuard
from wasmkilnd.engines.registry import EngineRegistry, ServedEngine
from wasmkilnd.engines.start import WorkerOptions, serve_engines
from wasmkilnd.engines.store import EngineStore
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.keys.ring import open_ring
from wasmkilnd.keys.store import KeysUnusable
from wasmkilnd.model import Limits
from wasmkilnd.ports import Sealer
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.admin_servicer import AdminServicer
from wasmkilnd.rpc.module_servicer import ModuleServicer
from wasmkilnd.rpc.server import METHODS, CannotListen, RpcServer
from wasmkilnd.rpc.stats import stats_response
from wasmkilnd.seal import DsseSealer
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.http import AddressInUse, AdminServer
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.telemetry.snapshot import EngineUsage
from wasmkilnd.wire import CHUNK_BYTES

log = structlog.get_logger("wasmkilnd")

_FLUSH_S = 5.0
_LAST_WORDS_S = 1.0


class CannotStart(Exception):  # noqa: N818 - says what the daemon cannot do
    """The daemon cannot start; the message says why and what to do."""


async def run(loaded: Loaded) -> None:
    """Serve until SIGTERM or SIGINT, then drain and end. Raises CannotStart."""
    settings = loaded.settings
    logs.configure(settings.log_format, settings.log_level, sys.stderr)
    asked_to_stop, asked_to_hurry = _listen_for_signals()
    daemon = Daemon(loaded)
    try:
        if await _unless(asked_to_stop, daemon.start()):
            print(daemon.banner, flush=True)  # noqa: T201 - for the person at the terminal
            await asked_to_stop.wait()
    finally:
        await daemon.stop(asked_to_hurry)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do ``work`` until ``event`` happens; answer whether it was done before."""
    working = asyncio.create_task(work)
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
    done = working.done()
    for task in (working, waiting):
        task.cancel()
    await asyncio.gather(working, waiting, return_exceptions=True)
    if done:
        await working  # Raises what it raised.
    return done


def _listen_for_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Answer the event of the first signal to stop, and that of the second."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def received(name: str) -> None:
        log.info("hurrying" if stop.is_set() else "stopping", signal=name)
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received, number.name)
    return stop, hurry


class Daemon:
    """All parts of one daemon."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._version = version("wasmkiln")
        self._metrics = Metrics(self._version, METHODS)
        self._limits = _limits(loaded.settings)
        self._isolation = IsolationGuard(required=loaded.settings.isolation == "required")
        self._started = AsyncExitStack()
        self._rpc: RpcServer | None = None
        self._service: CompileService | None = None
        self._ready = False
        self.banner = ""

    async def start(self) -> None:
        """Start every part; serve last, when all else works. Raises CannotStart."""
        settings = self._settings
        _make_state_dir(settings)
        engines = await self._start_engines()
        memory = MemoryTier(settings.memory_bytes)
        self._metrics.watch_tier("memory", memory.usage)
        sealer = await self._open_sealer()
        try:
            remote = await open_remote(_remote_options(settings), sealer, self._metrics)
        except CannotOpenRemote as failure:
            raise CannotStart(str(failure)) from None
        self._started.push_async_callback(remote.close, _FLUSH_S)
        self._metrics.watch_tier("redis", remote.tier.usage)
        self._metrics.watch_remote(remote.status)
        cache = TieredCache(
            memory,
            ObservedTier(memory, self._metrics),
            remote.tier,
            remote.write_behind,
            remote.turns,
            remote.used,
        )
        quarantine = Quarantine(remote.strikes, self._metrics, settings.quarantine_s)
        self._metrics.watch_quarantine(lambda: quarantine.size)
        service = CompileService(cache, engines, sealer, quarantine, self._metrics, self._limits)
        self._service = service
        self._metrics.watch_flights(lambda: service.flights)
        rpc = RpcServer(
            ModuleServicer(
                service,
                lambda: stats_response(self._metrics.snapshot()),
                lambda: self._capabilities(engines),
                self._metrics.bytes_sent,
            ),
            AdminServicer(service, quarantine),
            self._metrics.rpc,
            settings.max_module_bytes,
        )
        admin_address = await self._start_admin()
        self._started.push_async_callback(rpc.stop)
        try:
            addresses = await rpc.start(settings.listen)
        except CannotListen as failure:
            raise CannotStart(str(failure)) from None
        self._rpc = rpc
        # All that lives now lives to the end: let no collection look at it again, for
        # a full one would hold every caller up.
        gc.collect()
        gc.freeze()
        self._ready = bool(engines.served)
        await rpc.health.set(self._ready)
        self.banner = banner(
            self._version,
            self._loaded,
            addresses,
            admin_address,
            engines,
            self._isolation.summary,
            remote.description,
        )
        log.info("ready", addresses=addresses, engines=[engine.id for engine in engines.served])

    async def stop(self, hurry: asyncio.Event) -> None:
        """End in phases: refuse, finish, flush, close. ``hurry`` cuts the waiting short."""
        self._ready = False
        drained = asyncio.create_task(self._drain(self._settings.shutdown_grace_s))
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, hurried):
            task.cancel()
        await asyncio.gather(drained, hurried, return_exceptions=True)
        if self._service:
            await self._service.settle(0)
        await self._started.aclose()
        log.info("stopped")

    async def _drain(self, grace_s: float) -> None:
        if self._rpc is None or self._service is None:
            return
        log.info("draining", calls=self._rpc.running_calls, flights=self._service.flights)
        deadline = asyncio.get_running_loop().time() + grace_s
        if not await self._rpc.drain(grace_s):
            log.warning("calls did not end in time", calls=self._rpc.running_calls)
        left_s = max(0.0, deadline - asyncio.get_running_loop().time())
        given_up = await self._service.settle(left_s)
        if given_up:
            log.warning("compilations did not end in time", flights=given_up)

    async def _open_sealer(self) -> Sealer:
        settings = self._settings
        try:
            ring = await asyncio.to_thread(
                open_ring,
                settings.effective_keys_dir,
                settings.signing_key.get_secret_value(),
                settings.trusted_keys,
            )
        except KeysUnusable as failure:
            raise CannotStart(str(failure)) from None
        log.info("signing artifacts", key_id=ring.signing.public.id, trusted_keys=len(ring.trusted))
        return DsseSealer(ring.signing.signer(), ring, self._version)

    async def _start_engines(self) -> EngineRegistry:
        settings = self._settings
        store = EngineStore(settings.state_dir)
        installed = store.installed()
        for folder in store.damaged():
            log.error("engine is damaged: install it again", folder=str(folder))
        if not installed:
            raise CannotStart(
                f"no engine is installed under {settings.state_dir}: run"
                " `wasmkilnd engine install wasmtime` (and wasmer, where CPython 3.10 is) first"
            )
        served = await serve_engines(
            installed,
            WorkerOptions(
                size=settings.effective_workers,
                queue_length=settings.queue_length,
                threads=cpu_count(),
                on_replaced=self._metrics.worker_replaced,
                guard=self._isolation,
            ),
        )
        for engine in served:
            self._metrics.add_engine(engine.id)
            self._metrics.watch_engine(engine.id, _usage_of(engine))
            self._started.push_async_callback(engine.pool.close)
        try:
            return EngineRegistry(served, settings.default_engine, self._limits, self._metrics)
        except WasmkilnError as failure:
            raise CannotStart(f"WASMKILN_DEFAULT_ENGINE: {failure.message}") from None

    async def _start_admin(self) -> str:
        if self._settings.admin_listen == "none":
            return ""
        admin = AdminServer(self._settings.admin_listen, self._metrics.registry, self._readiness)
        try:
            address = await admin.start()
        except AddressInUse as failure:
            raise CannotStart(str(failure)) from None
        self._started.push_async_callback(admin.stop)
        return address

    def _readiness(self) -> tuple[bool, str]:
        if self._ready:
            return True, "ready"
        return False, "starting or draining, or no engine works"

    def _capabilities(self, engines: EngineRegistry) -> pb.GetCapabilitiesResponse:
        limits = self._limits
        return pb.GetCapabilitiesResponse(
            version=self._version,
            isolation_required=self._isolation.required,
            engines=[
                messages.engine_capabilities(
                    engine.capabilities,
                    engines.spec(engine.id, "", "", {}).fingerprint,
                    engine.id == engines.default,
                    self._isolation.of(engine.id),
                )
                for engine in engines.served
            ],
            limits=pb.Limits(
                module_bytes=limits.module_bytes,
                compile_time=messages.duration(limits.compile_timeout_s),
                compile_cpu_time=messages.duration(limits.compile_cpu_s),
                compile_memory_bytes=limits.compile_memory_bytes,
                artifact_bytes=limits.artifact_bytes,
                chunk_bytes=CHUNK_BYTES,
                queue_length=limits.queue_length,
                find_missing_keys=MAX_FIND_MISSING_KEYS,
            ),
        )


def _make_state_dir(settings: Settings) -> None:
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as failure:
        raise CannotStart(
            f"cannot make the state directory {settings.state_dir}: {failure.strerror};"
            " choose another with --state-dir or WASMKILN_STATE_DIR"
        ) from None


def _limits(settings: Settings) -> Limits:
    return Limits(
        module_bytes=settings.max_module_bytes,
        artifact_bytes=settings.max_artifact_bytes,
        compile_timeout_s=settings.compile_timeout_s,
        compile_cpu_s=settings.effective_compile_cpu_s,
        compile_memory_bytes=settings.effective_compile_memory_bytes,
        queue_length=settings.queue_length,
    )


def _remote_options(settings: Settings) -> RemoteOptions:
    return RemoteOptions(
        url=settings.redis_url.get_secret_value(),
        state_dir=settings.state_dir,
        embedded_limit_bytes=settings.embedded_redis_bytes,
        prefix=settings.redis_prefix,
        ttl_s=settings.cache_ttl_s,
        ttl_refresh=settings.cache_ttl_refresh,
        timeout_s=settings.redis_timeout_s,
        lease_s=settings.compile_lease_s,
        # Whoever compiles has ended by then, well or badly, unless it waits for a worker.
        turn_patience_s=settings.compile_timeout_s + settings.compile_lease_s,
        write_queue_bytes=settings.write_queue_bytes,
    )


def _usage_of(engine: ServedEngine) -> Callable[[], EngineUsage]:
    pool = engine.pool
    return lambda: EngineUsage(workers=pool.alive, busy=pool.busy, queued=pool.waiting)
