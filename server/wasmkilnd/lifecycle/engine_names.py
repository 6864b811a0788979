"""What engines' names stand for: read at a start and at a reload, checked, and recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import structlog

from wasmkilnd import errors
from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.install.name_record import NameRecord
from wasmkilnd.engines.install.store import EngineStore
from wasmkilnd.engines.names import NameChoices, moved_to, name_of, to_record
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.lifecycle.reload import CannotReload, Prepare
from wasmkilnd.ownership import NotOurs
from wasmkilnd.reloadable import Reloadable

log = structlog.get_logger("wasmkilnd.engines")


def read_choices(settings: Settings) -> NameChoices:
    """Return what decides about names. May block. Raises NotOurs."""
    record = NameRecord(settings.state_dir)
    return NameChoices(
        settings.engine_aliases, settings.default_engine, record.read(), record.removed()
    )


def refusal(settings: Settings) -> str:
    """Return why aliases or the default engine cannot be used; empty if they can. May block.

    Without any engine there is nothing to compare them with. Raises NotOurs.
    """
    there = _there(settings)
    if not there:
        return ""
    return _no_such(settings.engine_aliases, there) or _no_default(settings, there)


def prepare_names(current: Reloadable[Settings]) -> Prepare:
    """Return what refuses a reload that names an engine which is not there.

    What named it before may go on doing so: then somebody removed the engine on purpose. Engines
    follow after all else (``follow_engines``), and names with them.
    """

    def prepare(new: Settings) -> Callable[[], None]:
        old = current.current
        try:
            there = _there(new)
        except NotOurs as refused:
            raise CannotReload(str(refused)) from None
        changed = dict(new.engine_aliases.items() - old.engine_aliases.items())
        why = _no_such(changed, there)
        if new.default_engine != old.default_engine:
            why = why or _no_default(new, there)
        if why:
            raise CannotReload(why)
        return _nothing

    return prepare


def _there(settings: Settings) -> list[str]:
    store = EngineStore(settings.state_dir)
    return [each.id for each in store.installed()] + [each.name for each in store.damaged()]


def _no_default(settings: Settings, there: Sequence[str]) -> str:
    wanted = settings.default_engine
    wanted = settings.engine_aliases.get(wanted, wanted)
    if not wanted or any(wanted in (each, name_of(each)) for each in there):
        return ""
    return f"WASMKILN_DEFAULT_ENGINE: {errors.engine_unknown(wanted, there).message}"


def _nothing() -> None:
    pass


def _no_such(aliases: Mapping[str, str], there: Sequence[str]) -> str:
    for name, engine_id in aliases.items():
        if engine_id not in there:
            return (
                f"engine_alias: {name} stands for {engine_id}, which is not installed; installed"
                f" are: {', '.join(there) or 'none'}: install it, or correct WASMKILN_ENGINE_ALIAS"
            )
    return ""


def record_names(
    settings: Settings, registry: EngineRegistry, installed: Collection[str]
) -> NameChoices:
    """Record what names stand for now, where that is new; return the choices with the record.

    May block. A record that cannot be written is logged: names may move at the next start.
    """
    choices = registry.choices
    record = to_record(choices, registry.resolved, registry.served, installed)
    if record == choices.recorded:
        return choices
    try:
        NameRecord(settings.state_dir).write(record)
    except (OSError, NotOurs) as failure:
        log.warning("cannot record what engines' names stand for", cause=str(failure))
    return replace(choices, recorded=record)


def move_names(settings: Settings, engine_id: str) -> None:
    """Let an engine's name stand for it from now on. May block. Raises OSError and NotOurs."""
    record = NameRecord(settings.state_dir)
    record.write(moved_to(record.read(), engine_id))
