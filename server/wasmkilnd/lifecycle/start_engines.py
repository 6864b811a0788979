"""Starts the installed engines, and leaves out those that do not work."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog
from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.config.machine import cpu_count
from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.advisories import Advisories
from wasmkilnd.engines.install.start import WorkerOptions, serve_engines
from wasmkilnd.engines.install.store import EngineStore, InstalledEngine
from wasmkilnd.engines.install.warm_orders import WarmOrder, WarmOrders
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.workers.isolation import IsolationGuard
from wasmkilnd.engines.workers.job_users import JobUsers
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.lifecycle.engine_names import read_choices, record_names, refusal
from wasmkilnd.lifecycle.gauges import usage_of_engine
from wasmkilnd.lifecycle.long_step import long_step
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.vulnerable_engines import leave_out_vulnerable, open_advisories
from wasmkilnd.model import FAST_SETTINGS, Limits, UnservedEngine
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.wire.capabilities import capabilities_response
from wasmkilnd.telemetry.metrics.recorder import Metrics

log = structlog.get_logger("wasmkilnd")

_TEST_MOST_S = 600.0
"""How long systemd is asked to wait for the self-tests."""


@dataclass(frozen=True, slots=True)
class FoundEngines:
    """What lies in the state directory."""

    installed: Sequence[InstalledEngine]
    damaged: Sequence[UnservedEngine]


@dataclass(slots=True)
class StartedEngines:
    """The engines that serve, those that do not, and how jobs are confined.

    A reload replaces ``unserved``, and what ``registry`` serves.
    """

    registry: EngineRegistry
    unserved: Sequence[UnservedEngine]
    isolation: IsolationGuard
    orders: dict[str, WarmOrder]
    """By engine, what to compile before names stand for it."""
    options: WorkerOptions
    """How the workers of a further engine are run."""
    advisories: Reloadable[Advisories]
    """Which engines have a known vulnerability."""

    def capabilities(self, version: str, limits: Limits) -> pb.GetCapabilitiesResponse:
        """Return what GetCapabilities tells callers of a daemon of ``version``."""
        response = capabilities_response(
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
            self.registry.names,
            self.unserved,
            limits,
            isolation_required=self.isolation.required,
        )
        for engine, message in zip(self.registry.served, response.engines, strict=True):
            message.advisories.extend(
                pb.Advisory(id=row.id, summary=row.summary, fixed_in=row.fixed_in, url=row.url)
                for row in self.advisories.current.of(engine)
            )
        return response


def find_engines(settings: Settings) -> FoundEngines:
    """Return the engines under the state directory. Raises CannotStart if there is none."""
    found = look_for_engines(settings)
    log_unserved(found.damaged)
    if not found.installed:
        raise CannotStart(
            f"no engine is installed under {settings.state_dir}: run"
            " `wasmkilnd engine install wasmtime` (and wasmer, where CPython 3.10 is) first"
        )
    return found


def look_for_engines(settings: Settings) -> FoundEngines:
    """Return what lies under the state directory now. Raises NotOurs."""
    store = EngineStore(settings.state_dir)
    damaged = [
        UnservedEngine(folder.name, "it is damaged: install it again") for folder in store.damaged()
    ]
    return FoundEngines(store.installed(), damaged)


async def start_engines(
    found: FoundEngines,
    settings: Settings,
    limits: Reloadable[Limits],
    metrics: Metrics,
    on_stop: AsyncExitStack,
) -> StartedEngines:
    """Start every engine that works; ``on_stop`` ends them. Raises CannotStart and NotOurs."""
    if why := await asyncio.to_thread(refusal, settings):
        raise CannotStart(why)
    choices = await asyncio.to_thread(read_choices, settings)
    advisories = await asyncio.to_thread(open_advisories, settings)
    isolation = IsolationGuard(settings.isolation)
    options = WorkerOptions(
        size=settings.effective_workers,
        limits=limits,
        threads=cpu_count(),
        recorder=metrics,
        guard=isolation,
        users=JobUsers(settings.job_uid),
    )
    ids = [each.id for each in found.installed]
    # Each kind of module is compiled and run, and a broken engine is given a minute for each job.
    async with long_step(f"testing {', '.join(ids)}", _TEST_MOST_S):
        served, broken = await serve_engines(found.installed, options)
    served, refused = await leave_out_vulnerable(served, advisories)
    log_unserved([*broken, *refused])
    unserved = [*found.damaged, *broken, *refused]
    for working in served:
        on_stop.push_async_callback(working.pool.close)
        show_engine(working, metrics)
    if isolation.level == "strict" and isolation.refused:
        engine_id, why = next(iter(isolation.refused.items()))
        raise CannotStart(f"cannot serve {engine_id} (isolation = strict): {why}")
    found_orders = WarmOrders(settings.state_dir).read([engine.id for engine in served])
    orders = {order.engine_id: order for order in found_orders}
    try:
        registry = EngineRegistry(
            in_order_of_names(served, orders),
            choices,
            limits,
            metrics,
            [one.id for one in unserved],
        )
    except WasmkilnError as failure:
        raise CannotStart(f"WASMKILN_DEFAULT_ENGINE: {failure.message}") from None
    ids += [each.id for each in found.damaged]
    registry.choices = await asyncio.to_thread(record_names, settings, registry, ids)
    advisories.warn(served)
    started = StartedEngines(registry, unserved, isolation, orders, options, Reloadable(advisories))
    _show_states(started, metrics)
    return started


def in_order_of_names(
    served: Iterable[ServedEngine], warming: Collection[str]
) -> list[ServedEngine]:
    """Return engines in the order in which names are resolved.

    While an engine is among ``warming``, a name stands for it only if there is no other: what is
    used most is still being compiled for it.
    """
    return sorted(served, key=lambda engine: engine.id in warming)


def show_engine(engine: ServedEngine, metrics: Metrics) -> None:
    """Let metrics count an engine, and read how busy it is."""
    metrics.add_engine(engine.id)
    metrics.gauges.engines[engine.id] = usage_of_engine(engine)
    if engine.name in FAST_SETTINGS and not engine.has_fast:
        log.info("engine has no fast compiler", engine=engine.id)


def _show_states(started: StartedEngines, metrics: Metrics) -> None:
    """Let metrics read which engines are served, and how their jobs are confined."""
    gauges, registry = metrics.gauges, started.registry
    gauges.engine_states = lambda: {
        **{engine.id: False for engine in started.unserved},
        **{engine.id: True for engine in registry.served},
    }
    gauges.isolation = lambda: {
        engine.id: started.isolation.of(engine.id) for engine in registry.served
    }


def log_unserved(engines: Sequence[UnservedEngine]) -> None:
    """Log each engine that is not served, and why."""
    for engine in engines:
        log.error("engine is not served", engine=engine.id, cause=engine.cause)
