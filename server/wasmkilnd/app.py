"""The composition root: builds every part, starts them, and ends them in order."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import structlog
from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.admission import Admission
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.observed import ObservedTier
from wasmkilnd.cache.open_shared import CannotOpenShared, SharedTier, open_shared
from wasmkilnd.cache.tiered import TieredCache
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.compile_service import CompileService
from wasmkilnd.config.load import LoadedSettings
from wasmkilnd.config.machine import cpu_count
from wasmkilnd.config.schema import Settings
from wasmkilnd.config.values.address import Address
from wasmkilnd.config.values.types import NO_ADMIN
from wasmkilnd.engines.install.start import WorkerOptions, serve_engines
from wasmkilnd.engines.install.store import EngineStore, InstalledEngine
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.engines.workers.isolation import IsolationGuard
from wasmkilnd.engines.workers.job_users import JobUsers
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.lifecycle import descriptors
from wasmkilnd.lifecycle.banner import banner
from wasmkilnd.lifecycle.gauges import usage_of_engine, usage_of_traffic
from wasmkilnd.lifecycle.malloc_trim import MallocTrim
from wasmkilnd.lifecycle.readiness import Readiness
from wasmkilnd.lifecycle.reload import Reloader
from wasmkilnd.lifecycle.shutdown import Shutdown, until
from wasmkilnd.model import DrainState, UnservedEngine
from wasmkilnd.module_service import ModuleService
from wasmkilnd.options import limits_of, limits_too_low, remote_options, traffic_limits
from wasmkilnd.ownership import NotOurs, make_folder
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.server import METHODS, CannotListen, RpcServer, TransportLimits
from wasmkilnd.rpc.services.admin import AdminServicer
from wasmkilnd.rpc.services.module import ModuleServicer
from wasmkilnd.rpc.wire.capabilities import capabilities_response
from wasmkilnd.rpc.wire.stats import stats_response
from wasmkilnd.signing.current import CurrentSealer, Signing, log_keys, open_signing
from wasmkilnd.signing.store import KeysUnusable
from wasmkilnd.telemetry.admin.listener import DESCRIPTORS as ADMIN_DESCRIPTORS
from wasmkilnd.telemetry.admin.server import AddressInUse, AdminServer
from wasmkilnd.telemetry.metrics.recorder import Metrics

log = structlog.get_logger("wasmkilnd")

_FLUSH_S = 5.0


class CannotStart(Exception):  # noqa: N818 - says what the daemon cannot do
    """The daemon cannot start; the message says why and what to do."""


class Daemon:
    """All parts of one daemon."""

    def __init__(self, loaded: LoadedSettings, shutdown: Shutdown) -> None:
        self._loaded = loaded
        self._settings = Reloadable(loaded.settings)
        self._limits = Reloadable(limits_of(loaded.settings))
        self._traffic_limits = Reloadable(traffic_limits(loaded.settings))
        self._shutdown = shutdown
        self._version = version("wasmkiln")
        self._metrics = Metrics(self._version, METHODS)
        self._readiness = Readiness()
        self._unserved: list[UnservedEngine] = []
        self._isolation = IsolationGuard(loaded.settings.isolation)
        self._started = AsyncExitStack()
        self._rpc: RpcServer | None = None
        self._service: CompileService | None = None
        self._engines: EngineRegistry | None = None
        self._reloader: Reloader | None = None
        self.banner = ""

    async def start(self) -> None:
        """Start every part; serve last, when all else works. Raises CannotStart."""
        settings = self._settings.current
        _check_job_user(settings)
        if why := limits_too_low(settings):
            raise CannotStart(f"cannot run jobs: {why}")
        _make_state_dir(settings)
        installed = self._installed_engines(settings)
        connections = _connections(settings, engines=len(installed))
        signing = await self._open_signing(settings)
        marks = Marks()
        sealer = CurrentSealer(signing, marks.evicted_ms)
        engines = await self._start_engines(installed, settings)
        memory = MemoryTier(settings.memory_bytes)
        self._metrics.gauges.tiers["memory"] = memory.usage
        remote = await self._open_remote(sealer, marks)
        cache = TieredCache(
            memory,
            ObservedTier(memory, self._metrics),
            remote.tier,
            remote.write_behind,
            remote.used,
            call_wait_s=settings.redis_timeout_s,
        )
        quarantine = Quarantine(
            remote.strikes, self._metrics, lambda: self._settings.current.quarantine_s
        )
        self._started.push_async_callback(quarantine.close)
        self._metrics.gauges.quarantined = lambda: quarantine.size
        admission = Admission(engines, self._limits)
        service = CompileService(
            cache, remote.fleet, engines, sealer, quarantine, self._metrics, admission
        )
        modules = ModuleService(cache, engines, quarantine, admission)
        self._service = service
        self._metrics.gauges.flights = lambda: service.flights
        rpc = RpcServer(
            ModuleServicer(
                service,
                modules,
                lambda: stats_response(self._metrics),
                lambda: self._capabilities(engines),
            ),
            AdminServicer(modules, quarantine, self.drain),
            self._metrics,
            _transport_limits(settings, connections),
            self._traffic_limits,
            memory.holds,
        )
        self._metrics.gauges.traffic = usage_of_traffic(rpc.traffic)
        self._reloader = Reloader(
            self._settings,
            self._limits,
            self._traffic_limits,
            signing,
            memory,
            remote,
            cache,
            largest_module_bytes=rpc.largest_module_bytes,
            daemon_version=self._version,
        )
        admin_address = await self._start_admin(settings)
        self._rpc = rpc
        self._started.push_async_callback(rpc.stop)
        try:
            addresses = await rpc.start(settings.listen)
        except CannotListen as failure:
            raise CannotStart(str(failure)) from None
        self._readiness.started(engines.served, self._unserved, lambda: _what_ails(remote))
        rpc.health.set(self._readiness.now()[0])
        self._in_the_background(self._readiness.follow(rpc.health.set))
        self._in_the_background(MallocTrim.of_this_process().run())
        # All that lives now lives to the end: let no collection look at it again, for
        # a full one would hold every caller up.
        gc.collect()
        gc.freeze()
        self.banner = banner(
            self._version,
            self._loaded,
            addresses,
            admin_address,
            engines,
            self._unserved,
            self._isolation.summary,
            remote.description,
        )
        log.info("ready", addresses=addresses, engines=[engine.id for engine in engines.served])

    async def reload(self, read: Callable[[], LoadedSettings]) -> None:
        """Take over what ``read`` answers, as far as a running daemon can."""
        if self._reloader is None or self._shutdown.asked.is_set():
            log.warning("not reloaded: the daemon is starting or ending")
            return
        await self._reloader.reload(read)

    @property
    def detail(self) -> str:
        """How the daemon is, in a sentence."""
        return self._readiness.now()[1]

    def drain(self, grace_s: float | None = None) -> DrainState:
        """Begin to end: refuse new calls from now on; return what is waited for.

        ``grace_s`` is for what is under way; None for what the settings say.
        """
        first = not self._shutdown.asked.is_set()
        self._shutdown.ask(self._settings.current.shutdown_grace_s if grace_s is None else grace_s)
        self._readiness.draining()
        if not (self._rpc and self._service):
            return DrainState(0.0, 0, 0)  # It was still starting.
        self._rpc.refuse_calls()
        state = DrainState(self._shutdown.left_s, self._rpc.running_calls, self._service.flights)
        if first:
            log.info("draining", **asdict(state))
        return state

    async def stop(self) -> None:
        """End in phases: refuse, finish, give up, flush, close."""
        self.drain()
        if self._service and not await until(self._shutdown.overdue, self._finish()):
            log.warning(
                "given up, as the grace is over",
                calls=self._rpc.running_calls if self._rpc else 0,
                flights=self._service.flights,
            )
            await self._service.settle(0)
        if self._engines:
            # Before the connections go, so that who waits for a worker is told why.
            await self._engines.close()
        await self._started.aclose()
        log.info("stopped")

    async def _finish(self) -> None:
        if self._rpc and self._service:
            await self._rpc.idle()
            await self._service.settle()

    async def _open_signing(self, settings: Settings) -> Reloadable[Signing]:
        try:
            signing = await asyncio.to_thread(open_signing, settings, self._version)
        except KeysUnusable as failure:
            raise CannotStart(str(failure)) from None
        log_keys(signing)
        return Reloadable(signing)

    def _installed_engines(self, settings: Settings) -> list[InstalledEngine]:
        store = EngineStore(settings.state_dir)
        for folder in store.damaged():
            self._leave_out(UnservedEngine(folder.name, "it is damaged: install it again"))
        installed = store.installed()
        if not installed:
            raise CannotStart(
                f"no engine is installed under {settings.state_dir}: run"
                " `wasmkilnd engine install wasmtime` (and wasmer, where CPython 3.10 is) first"
            )
        return installed

    async def _start_engines(
        self, installed: list[InstalledEngine], settings: Settings
    ) -> EngineRegistry:
        served, broken = await serve_engines(
            installed,
            WorkerOptions(
                size=settings.effective_workers,
                limits=self._limits,
                threads=cpu_count(),
                recorder=self._metrics,
                guard=self._isolation,
                users=JobUsers(settings.job_uid),
            ),
        )
        for one in broken:
            self._leave_out(one)
        for engine in served:
            self._metrics.add_engine(engine.id)
            self._metrics.gauges.engines[engine.id] = usage_of_engine(engine)
            self._started.push_async_callback(engine.pool.close)
        if self._isolation.level == "strict" and self._isolation.refused:
            engine_id, why = next(iter(self._isolation.refused.items()))
            raise CannotStart(f"cannot serve {engine_id} (isolation = strict): {why}")
        try:
            self._engines = EngineRegistry(
                served,
                settings.default_engine,
                self._limits,
                self._metrics,
                [one.id for one in self._unserved],
            )
        except WasmkilnError as failure:
            raise CannotStart(f"WASMKILN_DEFAULT_ENGINE: {failure.message}") from None
        return self._engines

    def _leave_out(self, engine: UnservedEngine) -> None:
        log.error("engine is not served", engine=engine.id, cause=engine.cause)
        self._unserved.append(engine)

    async def _open_remote(self, sealer: CurrentSealer, marks: Marks) -> SharedTier:
        options = remote_options(self._settings)
        try:
            remote = await open_shared(options, sealer, self._metrics, marks)
        except CannotOpenShared as failure:
            raise CannotStart(str(failure)) from None
        self._started.push_async_callback(self._unless_hurried, remote.leave)
        self._started.push_async_callback(remote.close)
        self._started.push_async_callback(self._unless_hurried, remote.flush, _FLUSH_S)
        self._metrics.gauges.tiers["redis"] = remote.tier.usage
        self._metrics.gauges.remote = remote.status
        return remote

    async def _start_admin(self, settings: Settings) -> str:
        if settings.admin_listen == NO_ADMIN:
            return ""
        admin = AdminServer(settings.admin_listen, self._metrics.registry, self._readiness.now)
        try:
            address = await admin.start()
        except AddressInUse as failure:
            raise CannotStart(str(failure)) from None
        self._started.push_async_callback(admin.stop)
        return address

    def _capabilities(self, engines: EngineRegistry) -> pb.GetCapabilitiesResponse:
        return capabilities_response(
            self._version,
            [
                (
                    engine.capabilities,
                    engines.spec(engine.id, "", "", {}).fingerprint,
                    self._isolation.of(engine.id),
                )
                for engine in engines.served
            ],
            engines.default,
            self._unserved,
            self._limits.current,
            isolation_required=self._isolation.required,
        )

    def _in_the_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._started.push_async_callback(end)

    async def _unless_hurried(self, work: Callable[..., Any], *arguments: Any) -> None:
        await until(self._shutdown.hurried, work(*arguments))


def _check_job_user(settings: Settings) -> None:
    if settings.job_uid and os.geteuid() != 0:
        raise CannotStart(
            f"cannot run workers as user {settings.job_uid} (job_uid): only a daemon that is root"
            " can; run it as root, or leave job_uid out and its workers have the daemon's user"
        )


def _make_state_dir(settings: Settings) -> None:
    try:
        make_folder(settings.state_dir)
    except NotOurs as refusal:
        raise CannotStart(str(refusal)) from None
    except OSError as failure:
        raise CannotStart(
            f"cannot make the state directory {settings.state_dir}: {failure.strerror};"
            " choose another with --state-dir or WASMKILN_STATE_DIR"
        ) from None


def _connections(settings: Settings, *, engines: int) -> int:
    """Return how many connections each address may have, given the descriptors that there are."""
    return descriptors.share_out(
        settings.max_connections,
        sum(Address.parse(address).listeners for address in settings.listen),
        descriptors.needed(
            workers=engines * settings.effective_workers,
            cluster="+cluster:" in settings.redis_url.get_secret_value(),
            admin=0 if settings.admin_listen == NO_ADMIN else ADMIN_DESCRIPTORS,
        ),
    )


def _transport_limits(settings: Settings, connections: int) -> TransportLimits:
    return TransportLimits(
        module_bytes=settings.max_module_bytes,
        connections=connections,
        streams=settings.max_streams,
    )


def _what_ails(remote: SharedTier) -> str:
    status = remote.status()
    return "" if status.switched_off else status.detail
