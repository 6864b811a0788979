"""The composition root: build every part, start them, and end them in order."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog

from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.lifecycle import descriptors
from wasmkilnd.lifecycle.auditing import audit_access, audit_start, audit_tls
from wasmkilnd.lifecycle.banner import banner
from wasmkilnd.lifecycle.engines import Serving, find_engines
from wasmkilnd.lifecycle.listening import prepare_tls
from wasmkilnd.lifecycle.long_step import long_step
from wasmkilnd.lifecycle.malloc_trim import MallocTrim
from wasmkilnd.lifecycle.open_access import open_access
from wasmkilnd.lifecycle.opening import Opening
from wasmkilnd.lifecycle.preflight import check_host
from wasmkilnd.lifecycle.progress import Progress
from wasmkilnd.lifecycle.readiness import Readiness
from wasmkilnd.lifecycle.reload import Reloader, ReloadResult
from wasmkilnd.lifecycle.serve_namespaces import prepare_namespaces
from wasmkilnd.lifecycle.service import Service
from wasmkilnd.lifecycle.shutdown import Shutdown, until
from wasmkilnd.lifecycle.status_page import StatusPage
from wasmkilnd.lifecycle.watch import follow, stamps_of, watched_files
from wasmkilnd.model import DrainState, Reloadable
from wasmkilnd.options import limits_of, traffic_limits
from wasmkilnd.quota import Quotas
from wasmkilnd.rpc.admin_service import AdminServicer
from wasmkilnd.rpc.calls import Entry
from wasmkilnd.rpc.messages import stats_response
from wasmkilnd.rpc.module_service import ModuleServicer
from wasmkilnd.rpc.server import METHODS, RpcServer
from wasmkilnd.rpc.traffic import MESSAGE_OVERHEAD_BYTES, Traffic, message_bytes_for
from wasmkilnd.settings_loader import LoadedSettings
from wasmkilnd.telemetry.logs import dropped_lines
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.tenants import Tenants

# Calls at a time on one connection.
_MAX_STREAMS = 256

log = structlog.get_logger("wasmkilnd")


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
        self._metrics.gauges.ready = lambda: self._readiness.now()[0]
        self._metrics.gauges.log_lines_dropped = dropped_lines
        self._on_stop = AsyncExitStack()
        self._rpc: RpcServer | None = None
        self._tenants: Tenants | None = None
        self._engines: EngineRegistry | None = None
        self._reloader: Reloader | None = None
        self._serving: Serving | None = None
        self.banner = ""

    async def start(self) -> None:
        """Start every part; serve last, once all else works. Raises CannotStart."""
        settings = self._settings.current
        check_host(settings)
        seen = stamps_of(watched_files(settings))
        opening = Opening(
            self._settings, self._limits, self._metrics, self._on_stop, self._shutdown
        )
        audit = await opening.audit()
        tracing = await opening.tracing()
        tls = await opening.tls()
        access = await open_access(self._settings, lambda: tls.current.client_cas if tls else ())
        access.on_change(partial(audit_access, audit))
        audit_tls(audit, tls)
        sealer = await opening.sealer()
        found = await find_engines(settings)
        connections = descriptors.connections_per_address(settings, len(found))
        audit_start(audit, self._version, sealer.keys)
        started = Serving(
            self._settings, self._limits, self._metrics, audit, self._in_the_background
        )
        await started.start(found, self._on_stop)
        engines = self._engines = started.registry
        quotas = Quotas(lambda: access.policy.current.quotas)
        self._metrics.gauges.quotas = quotas.by_kind
        async with long_step("opening the cache", at_most_s=300.0):
            tenants = self._tenants = await opening.tenants(
                access.policy.current.namespaces, engines, sealer
            )
        traffic = Traffic(self._traffic_limits, message_bytes_for(settings.max_module_bytes))
        rpc = RpcServer(
            ModuleServicer(
                tenants.of,
                lambda namespace: stats_response(
                    tenants.metrics_of(namespace),
                    namespace,
                    quotas.readings(namespace),
                    engines.names,
                ),
                lambda: started.capabilities(self._version, self._limits.current),
            ),
            AdminServicer(tenants.of, self.drain),
            Entry(traffic, self._metrics, access.guard, audit, quotas.of, tracing),
            connections=connections,
            streams=_MAX_STREAMS,
        )
        self._metrics.gauges.traffic = traffic.usage
        self._reloader = Reloader(
            self._settings,
            self._limits,
            self._traffic_limits,
            sealer,
            tenants,
            audit,
            self._metrics,
            largest_module_bytes=traffic.message_bytes - MESSAGE_OVERHEAD_BYTES,
            parts=[
                *([prepare_tls(tls)] if tls else []),
                access.prepare,
                prepare_namespaces(tenants, access),
                lambda new: audit.prepare(new.audit_file),
                lambda _: tenants.look_at_pins,
                started.prepare,
            ],
        )
        self._in_the_background(access.guard.follow_keys())
        self._in_the_background(
            follow(lambda: watched_files(self._settings.current), seen, self._reloader.refresh)
        )
        started.follow(tenants)
        self._serving = started
        status = StatusPage(self._metrics, self._readiness, started, tenants)
        admin_address = await opening.admin(self._readiness, access.guard, audit, tls, status.pages)
        if admin_address:
            self._in_the_background(status.sampler.run())
        self._rpc = rpc
        bound = await opening.listen(rpc, tls)
        self._readiness.started(
            lambda: engines.served, lambda: started.unserved, lambda: _redis_detail(tenants)
        )
        rpc.set_health(self._readiness.now()[0])
        self._in_the_background(self._readiness.follow(rpc.set_health))
        self._in_the_background(MallocTrim.of_this_process().run())
        # All that is there now stays: a full collection of it would make every caller wait.
        gc.collect()
        gc.freeze()
        self.banner = banner(
            self._version,
            self._loaded,
            bound,
            admin_address,
            engines,
            started.unserved,
            started.isolation.summary,
            tenants.default.host.trouble,
            tenants.server.description,
            asks=access.guard.access.on,
        )
        log.info(
            "ready",
            addresses=bound.all,
            metrics=admin_address,
            engines=[engine.id for engine in engines.served],
        )

    async def reload(self, read: Callable[[], LoadedSettings]) -> ReloadResult:
        """Apply the configuration that ``read`` returns, as far as a running daemon can."""
        if self._reloader is None or self._shutdown.asked.is_set():
            log.warning("cannot reload: the daemon is starting or stopping")
            return ReloadResult("the daemon is starting or stopping")
        result = await self._reloader.reload(read)
        if not result.refused and self._serving:
            await self._serving.look()
        return result

    def service(self) -> Service:
        """Return what tells the service manager how the daemon is."""
        progress = Progress(
            lambda: [engine.pool for engine in self._engines.served] if self._engines else []
        )
        return Service(
            self._settings.current.state_dir, self._version, self._status, progress.holds
        )

    def _status(self) -> str:
        return f"{self._readiness.now()[1]}; {self._metrics.figures()}"

    def drain(self, grace_s: float | None = None) -> DrainState:
        """Refuse new calls from now on; return what the daemon still waits for.

        Calls in progress have ``grace_s`` to finish; None for the setting.
        """
        first = not self._shutdown.asked.is_set()
        self._shutdown.ask(self._settings.current.shutdown_grace_s if grace_s is None else grace_s)
        self._readiness.draining()
        if not (self._rpc and self._tenants):
            return DrainState(0.0, 0, 0)  # It was still starting.
        self._rpc.refuse_calls()
        state = DrainState(self._shutdown.left_s, self._rpc.running_calls, self._tenants.flights)
        if first:
            log.info("draining", **asdict(state))
        return state

    async def stop(self) -> None:
        """End in phases: refuse new calls, finish, give up, flush, close."""
        self.drain()
        if self._tenants:
            await self._tenants.end_behind()
        if self._tenants and not await until(self._shutdown.overdue, self._finish()):
            log.warning(
                "grace is over: giving up calls",
                calls=self._rpc.running_calls if self._rpc else 0,
                flights=self._tenants.flights,
            )
            await self._tenants.settle(0)
        if self._engines:
            # While connections are open, so that callers who wait for a worker learn why they fail.
            await self._engines.close()
        await self._on_stop.aclose()
        log.info("stopped")

    async def _finish(self) -> None:
        if self._rpc and self._tenants:
            await self._rpc.idle()
            await self._tenants.settle()

    def _in_the_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._on_stop.push_async_callback(end)


def _redis_detail(tenants: Tenants) -> str:
    status = tenants.remote_status()
    return "" if status.switched_off else status.detail
