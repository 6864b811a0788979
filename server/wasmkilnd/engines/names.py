"""Which engine a name stands for: what the operator says, else what it stood for before.

A further version that is installed changes no name. So that a restart changes none either, what
each name stands for is kept in the state directory (``install.name_record``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

DEFAULT = "default"
"""What stands in a record for requests that name no engine."""


class _Engine(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


E = TypeVar("E", bound=_Engine)


@dataclass(frozen=True, slots=True)
class NameChoices:
    """What decides which engine a name stands for, the strongest first."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """The setting ``engine_alias``: an id by name."""
    default: str = ""
    """The setting ``default_engine``: an id, a name, or empty."""
    recorded: Mapping[str, str] = field(default_factory=dict)
    """What names stood for before: an id by name, and by DEFAULT."""
    removed: Collection[str] = ()
    """The ids of engines that an operator removed."""


@dataclass(frozen=True, slots=True)
class Names:
    """What each name stands for."""

    by_name: Mapping[str, str]
    """An id by name; that of an alias may not be served."""
    default: str
    """The id for requests that name no engine; empty if it is not served."""


def name_of(engine_id: str) -> str:
    """Return the name of the engine with this id."""
    return engine_id.partition("-")[0]


def resolve(choices: NameChoices, served: Sequence[_Engine], unserved: Collection[str]) -> Names:
    """Return what names stand for where ``served`` are the engines, the preferred ones first.

    ``unserved`` are the ids of installed engines that do not work. A default that is one of them
    has no other in its place, which the operator did not choose. Raises LookupError for a default
    that is in neither list.
    """
    ids = {engine.id for engine in served}
    by_name: dict[str, str] = {}
    for engine in served:
        before = choices.recorded.get(engine.name, "")
        by_name.setdefault(engine.name, before if before in ids else engine.id)
    by_name |= choices.aliases
    default = choices.default
    if default:
        default = default if default in ids else by_name.get(default, default)
        if default not in ids:
            if not any(default in (each, name_of(each)) for each in unserved):
                raise LookupError(default)
            default = ""
    elif served:
        before = choices.recorded.get(DEFAULT, "")
        # Of an engine that is gone, another version is nearer than another engine.
        wanted = (before, by_name.get(name_of(before), ""))
        default = next((each for each in wanted if each in ids), by_name[served[0].name])
        default = default if default in ids else served[0].id
    return Names(by_name, default)


def named_first(served: Iterable[E], names: Names) -> list[E]:
    """Return engines with those first that their names stand for: clients choose the first."""
    return sorted(served, key=lambda engine: names.by_name.get(engine.name) != engine.id)


def to_record(
    choices: NameChoices, names: Names, served: Iterable[_Engine], installed: Collection[str]
) -> dict[str, str]:
    """Return what to record: as before, except for what is chosen, or is not installed any more.

    A choice is recorded too: what a name stands for stays when the choice is taken back.
    """
    record = {name: each for name, each in choices.recorded.items() if each in installed}
    ids = {engine.id for engine in served}
    now = {name: names.by_name[name] for name in {name_of(each) for each in ids}}
    now[DEFAULT] = names.default
    for name, engine_id in now.items():
        chosen = choices.default if name == DEFAULT else name in choices.aliases
        if engine_id in ids and (chosen or name not in record):
            record[name] = engine_id
    return record


def moved_to(recorded: Mapping[str, str], engine_id: str) -> dict[str, str]:
    """Return a record in which an engine's name stands for ``engine_id``.

    Requests that name no engine follow, if they got another version of it.
    """
    name = name_of(engine_id)
    record = {**recorded, name: engine_id}
    if name_of(record.get(DEFAULT, "")) == name:
        record[DEFAULT] = engine_id
    return record
