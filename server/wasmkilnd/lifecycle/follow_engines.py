"""Follow what is installed: a reload serves new engines, and takes out those that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.install.start import serve_engines
from wasmkilnd.engines.install.store import newest_first
from wasmkilnd.engines.install.warm_orders import WarmOrder, WarmOrders
from wasmkilnd.engines.names import NameChoices, moved_to
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.lifecycle.auditing import audit_engines
from wasmkilnd.lifecycle.descriptors import make_room
from wasmkilnd.lifecycle.engine_names import move_names, read_choices, record_names
from wasmkilnd.lifecycle.start_engines import (
    FoundEngines,
    StartedEngines,
    in_order_of_names,
    log_unserved,
    look_for_engines,
    show_engine,
)
from wasmkilnd.lifecycle.vulnerable_engines import leave_out_vulnerable
from wasmkilnd.lifecycle.warm_ups import WarmUps
from wasmkilnd.model import UnservedEngine
from wasmkilnd.ownership import NotOurs
from wasmkilnd.ports import Auditor
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.telemetry.metrics.recorder import Metrics
from wasmkilnd.tenants import Tenants

log = structlog.get_logger("wasmkilnd.engines")

_LOOK_S = 0.25


class EngineFollower:
    """Changes which engines are served while calls run. For one event loop."""

    def __init__(
        self,
        started: StartedEngines,
        settings: Reloadable[Settings],
        metrics: Metrics,
        tenants: Tenants,
        auditor: Auditor,
        in_background: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """Change what ``started`` serves. ``in_background`` runs what no reload waits for."""
        self._started = started
        self._settings = settings
        self._metrics = metrics
        self._tenants = tenants
        self._auditor = auditor
        self._in_background = in_background
        self._orders = WarmOrders(settings.current.state_dir)
        self._warm_ups = WarmUps(
            self._orders,
            tenants,
            max(1, settings.current.effective_workers // 2),
            self._names_move,
            in_background,
        )
        metrics.gauges.warm_ups = lambda: self._warm_ups.status

    def begin(self) -> None:
        """Go on with what was ordered before the daemon started."""
        self._warm_ups.begin(list(self._started.orders.values()))

    async def look(self) -> None:
        """Serve what is installed now, and nothing else; never raise for an engine that fails.

        The log says what changed. An engine that failed at its last start is tried again.
        """
        # Other daemons that are told of the same engine want to know what is hot here.
        await self._tenants.save_uses()
        await self._look()
        log.info("engines read again")

    async def _look(self) -> None:
        try:
            found = await asyncio.to_thread(look_for_engines, self._settings.current)
        except NotOurs as refusal:
            log.error("cannot look for engines: those that are served stay", cause=str(refusal))
            return
        if not found.installed:
            log.error("no engine is installed: those that are served stay")
            return
        try:
            choices = await asyncio.to_thread(read_choices, self._settings.current)
        except NotOurs as refusal:
            log.error("cannot read what engines' names stand for", cause=str(refusal))
            choices = self._started.registry.choices
        registry = self._started.registry
        before = {engine.id: engine for engine in registry.served}
        new = [engine for engine in found.installed if engine.id not in before]
        if new:
            make_room(len(new), self._settings.current)
        added, broken = await serve_engines(new, self._started.options)
        advisories = self._started.advisories.current
        added, refused = await leave_out_vulnerable(added, advisories)
        broken += [*refused, *advisories.refused(before.values())]
        ids = {engine.id for engine in found.installed} & {*before, *(each.id for each in added)}
        ids -= {each.id for each in broken}
        orders = {each.engine_id: each for each in await asyncio.to_thread(self._read_orders, ids)}
        # Names that stand for an engine already do not move back.
        self._started.orders |= {each.id: orders[each.id] for each in added if each.id in orders}
        await self._serve(found, before, added, broken, choices)
        advisories.warn(registry.served)
        self._warm_ups.begin(list(orders.values()))

    def _read_orders(self, engine_ids: Collection[str]) -> Sequence[WarmOrder]:
        try:
            return self._orders.read(engine_ids)
        except NotOurs as refusal:
            log.error("cannot read the orders of warm-ups", cause=str(refusal))
            return ()

    async def _names_move(self, engine_id: str) -> None:
        """Let names stand for an engine whose warm-up has ended."""
        registry = self._started.registry
        if self._started.orders.pop(engine_id, None) is None:
            return
        before = (registry.names, registry.default)
        settings, choices = self._settings.current, registry.choices
        try:
            await asyncio.to_thread(move_names, settings, engine_id)
            choices = await asyncio.to_thread(read_choices, settings)
        except (OSError, NotOurs) as failure:
            log.error("cannot record what engines' names stand for", cause=str(failure))
            choices = replace(choices, recorded=moved_to(choices.recorded, engine_id))
        installed = [each.id for each in registry.served]
        installed += [each.id for each in self._started.unserved]
        await self._arrange(registry.served, choices, installed)
        await self._tenants.write_engines()
        # Equal if there was no other engine, or an alias decides, or this one was taken out.
        if (registry.names, registry.default) != before:
            self._log_names(before)

    def _log_names(self, before: tuple[Mapping[str, str], str]) -> None:
        registry = self._started.registry
        log.info(
            "names stand for another engine",
            names=registry.names,
            before=before[0],
            default=registry.default,
            default_before=before[1],
        )

    async def _arrange(
        self, served: Iterable[ServedEngine], choices: NameChoices, installed: Collection[str]
    ) -> None:
        started = self._started
        order = in_order_of_names(_in_order(served), started.orders)
        started.registry.serve(order, [each.id for each in started.unserved], choices)
        started.registry.choices = await asyncio.to_thread(
            record_names, self._settings.current, started.registry, installed
        )

    async def _serve(
        self,
        found: FoundEngines,
        before: dict[str, ServedEngine],
        added: Sequence[ServedEngine],
        broken: Sequence[UnservedEngine],
        choices: NameChoices,
    ) -> None:
        started, installed = self._started, {engine.id for engine in found.installed}
        left = installed - {each.id for each in broken}
        removed = [engine for engine in before.values() if engine.id not in left]
        unserved = [*found.damaged, *broken]
        log_unserved([each for each in unserved if each not in started.unserved])
        started.unserved = unserved
        names = (started.registry.names, started.registry.default)
        served = [*(each for each in before.values() if each not in removed), *added]
        await self._arrange(
            served, choices, sorted(installed | {each.id for each in found.damaged})
        )
        if not (added or removed):
            if (started.registry.names, started.registry.default) != names:
                await self._tenants.write_engines()
                self._log_names(names)
            return
        for engine in added:
            show_engine(engine, self._metrics)
            self._tenants.add_engine(engine.id)
        for engine in removed:
            self._in_background(self._end(engine))
        await self._tenants.write_engines()
        ids, gone = [engine.id for engine in added], [engine.id for engine in removed]
        audit_engines(self._auditor, ids, gone)
        log.info(
            "engines changed",
            served=ids,
            removed=gone,
            default=started.registry.default,
            names=started.registry.names,
        )

    async def _end(self, engine: ServedEngine) -> None:
        """End an engine that is served no more, after the jobs that it has."""
        idle = 0
        while idle < 2:  # A call that chose the engine may be about to ask for a worker.
            await asyncio.sleep(_LOOK_S)
            idle = 0 if engine.pool.busy or engine.pool.waiting else idle + 1
        registry, gauges = self._started.registry, self._metrics.gauges
        registry.end(engine)
        if engine.id not in {each.id for each in registry.served}:
            gauges.engines.pop(engine.id, None)
        await engine.pool.close()
        engine.release()
        log.info("engine has ended", engine=engine.id)


def _in_order(served: Iterable[ServedEngine]) -> list[ServedEngine]:
    by_id = {engine.id: engine for engine in served}
    identities = newest_first(engine.capabilities.identity for engine in by_id.values())
    return [by_id[identity.id] for identity in identities]
