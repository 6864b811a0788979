"""Starts the installed engines, and leaves out those that do not work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog
from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.config.machine import cpu_count
from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.install.start import WorkerOptions, serve_engines
from wasmkilnd.engines.install.store import EngineStore, InstalledEngine
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.engines.workers.isolation import IsolationGuard
from wasmkilnd.engines.workers.job_users import JobUsers
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.lifecycle.gauges import usage_of_engine
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.model import FAST_SETTINGS, Limits, UnservedEngine
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.wire.capabilities import capabilities_response
from wasmkilnd.telemetry.metrics.recorder import Metrics

log = structlog.get_logger("wasmkilnd")


@dataclass(frozen=True, slots=True)
class FoundEngines:
    """What lies in the state directory."""

    installed: Sequence[InstalledEngine]
    damaged: Sequence[UnservedEngine]


@dataclass(frozen=True, slots=True)
class StartedEngines:
    """The engines that serve, those that do not, and how jobs are confined."""

    registry: EngineRegistry
    unserved: Sequence[UnservedEngine]
    isolation: IsolationGuard

    def capabilities(self, version: str, limits: Limits) -> pb.GetCapabilitiesResponse:
        """Return what GetCapabilities tells callers of a daemon of ``version``."""
        return capabilities_response(
            version,
            [
                (
                    engine.capabilities,
                    self.registry.spec(engine.id, "", "", {}).fingerprint,
                    self.isolation.of(engine.id),
                )
                for engine in self.registry.served
            ],
            self.registry.default,
            self.unserved,
            limits,
            isolation_required=self.isolation.required,
        )


def find_engines(settings: Settings) -> FoundEngines:
    """Return the engines under the state directory. Raises CannotStart if there is none."""
    store = EngineStore(settings.state_dir)
    damaged = [
        UnservedEngine(folder.name, "it is damaged: install it again") for folder in store.damaged()
    ]
    _log_unserved(damaged)
    installed = store.installed()
    if not installed:
        raise CannotStart(
            f"no engine is installed under {settings.state_dir}: run"
            " `wasmkilnd engine install wasmtime` (and wasmer, where CPython 3.10 is) first"
        )
    return FoundEngines(installed, damaged)


async def start_engines(
    found: FoundEngines,
    settings: Settings,
    limits: Reloadable[Limits],
    metrics: Metrics,
    on_stop: AsyncExitStack,
) -> StartedEngines:
    """Start every engine that works; ``on_stop`` ends them. Raises CannotStart."""
    isolation = IsolationGuard(settings.isolation)
    served, broken = await serve_engines(
        found.installed,
        WorkerOptions(
            size=settings.effective_workers,
            limits=limits,
            threads=cpu_count(),
            recorder=metrics,
            guard=isolation,
            users=JobUsers(settings.job_uid),
        ),
    )
    _log_unserved(broken)
    unserved = [*found.damaged, *broken]
    for working in served:
        metrics.add_engine(working.id)
        metrics.gauges.engines[working.id] = usage_of_engine(working)
        on_stop.push_async_callback(working.pool.close)
        if working.name in FAST_SETTINGS and not working.has_fast:
            log.info("engine has no fast compiler", engine=working.id)
    if isolation.level == "strict" and isolation.refused:
        engine_id, why = next(iter(isolation.refused.items()))
        raise CannotStart(f"cannot serve {engine_id} (isolation = strict): {why}")
    try:
        registry = EngineRegistry(
            served, settings.default_engine, limits, metrics, [one.id for one in unserved]
        )
    except WasmkilnError as failure:
        raise CannotStart(f"WASMKILN_DEFAULT_ENGINE: {failure.message}") from None
    return StartedEngines(registry, unserved, isolation)


def _log_unserved(engines: Sequence[UnservedEngine]) -> None:
    for engine in engines:
        log.error("engine is not served", engine=engine.id, cause=engine.cause)
