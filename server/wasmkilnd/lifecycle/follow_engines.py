"""Follow what is installed: a reload serves new engines, and takes out those that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.install.start import serve_engines
from wasmkilnd.engines.install.store import InstalledEngine, newest_first
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.lifecycle.auditing import audit_engines
from wasmkilnd.lifecycle.descriptors import make_room
from wasmkilnd.lifecycle.start_engines import (
    FoundEngines,
    StartedEngines,
    log_unserved,
    look_for_engines,
    show_engine,
)
from wasmkilnd.model import UnservedEngine
from wasmkilnd.ownership import NotOurs
from wasmkilnd.ports import Auditor
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.telemetry.metrics.recorder import Metrics
from wasmkilnd.tenants.tenants import Tenants

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

    async def look(self) -> None:
        """Serve what is installed now, and nothing else; never raise for an engine that fails.

        The log says what changed. An engine that failed at its last start is tried again.
        """
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
        registry = self._started.registry
        before = {engine.id: engine for engine in registry.served}
        new = [engine for engine in found.installed if engine.id not in before]
        if new:
            make_room(len(new), self._settings.current)
        added, broken = await serve_engines(new, self._started.options)
        await self._serve(found, before, added, broken)

    async def _serve(
        self,
        found: FoundEngines,
        before: dict[str, ServedEngine],
        added: Sequence[ServedEngine],
        broken: Sequence[UnservedEngine],
    ) -> None:
        started, installed = self._started, {engine.id for engine in found.installed}
        removed = [engine for engine in before.values() if engine.id not in installed]
        unserved = [*found.damaged, *broken]
        log_unserved([each for each in unserved if each not in started.unserved])
        started.unserved = unserved
        if not (added or removed):
            return
        kept = {each: engine for each, engine in before.items() if each in installed}
        kept |= {engine.id: engine for engine in added}
        started.registry.serve(_in_order(found.installed, kept), [each.id for each in unserved])
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
        log.info("engine has ended", engine=engine.id)


def _in_order(
    installed: Sequence[InstalledEngine], served: dict[str, ServedEngine]
) -> list[ServedEngine]:
    return [served[each.id] for each in newest_first(list(installed)) if each.id in served]
