"""Which engine a name stands for: what the operator says, else what it stood for before.

A further version that is installed changes no name. So that a restart changes none either, what
each name stands for is kept in the state directory (``NameRecord``). An order of a warm-up
(``WarmOrder``) keeps names from a new engine until what is used most is compiled for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import Field, TypeAdapter

from wasmkilnd.engines.fits import Fit
from wasmkilnd.files.ownership import check_path
from wasmkilnd.files.whole_files import locked, write_whole
from wasmkilnd.usage import MAX_USES

log = structlog.get_logger("wasmkilnd.engines")

# What stands in a record for requests that name no engine.
DEFAULT = "default"

_MAX_REMOVED = 64


@dataclass(frozen=True, slots=True)
class NameChoices:
    """What decides which engine a name stands for, the strongest first."""

    # The setting ``engine_alias``: an id by name.
    aliases: Mapping[str, str] = field(default_factory=dict)
    # The setting ``default_engine``: an id, a name, or empty.
    default: str = ""
    # What names stood for before: an id by name, and by DEFAULT.
    recorded: Mapping[str, str] = field(default_factory=dict)
    # The ids of engines that an operator removed.
    removed: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Names:
    """What each name stands for."""

    # An id by name; that of an alias may not be served.
    by_name: Mapping[str, str]
    # The id for requests that name no engine; empty if it is not served.
    default: str


def name_of(engine_id: str) -> str:
    """Return the name of the engine with this id."""
    return engine_id.partition("-")[0]


def resolve(choices: NameChoices, served: Sequence[str]) -> Names:
    """Return what names stand for where these ids are ``served``, the preferred ones first.

    A default that is not served has no other in its place, which the operator did not choose.
    """
    by_name: dict[str, str] = {}
    for engine_id in served:
        before = choices.recorded.get(name_of(engine_id), "")
        by_name.setdefault(name_of(engine_id), before if before in served else engine_id)
    first = by_name[name_of(served[0])] if served else ""
    by_name |= choices.aliases
    if choices.default:
        wanted = [choices.default, by_name.get(choices.default, "")]
    else:
        before = choices.recorded.get(DEFAULT, "")
        # Of an engine that is gone, another version is nearer than another engine.
        wanted = [before, by_name.get(name_of(before), ""), by_name.get(name_of(first), ""), first]
    return Names(by_name, next((each for each in wanted if each in served), ""))


def to_record(
    choices: NameChoices, names: Names, served: Collection[str], installed: Collection[str]
) -> dict[str, str]:
    """Return what to record: as before, except for what is chosen, or is not installed any more.

    A choice is recorded too: what a name stands for stays when the choice is taken back.
    """
    record = {name: each for name, each in choices.recorded.items() if each in installed}
    now = {name: names.by_name[name] for name in map(name_of, served)} | {DEFAULT: names.default}
    for name, engine_id in now.items():
        chosen = choices.default if name == DEFAULT else name in choices.aliases
        if engine_id in served and (chosen or name not in record):
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


@dataclass(frozen=True, slots=True)
class WarmOrder:
    """What to compile before names stand for an engine."""

    engine_id: str
    from_engine_id: str
    # How many of the artifacts that are used most.
    top: Annotated[int, Field(ge=1, le=MAX_USES)]


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept in ``<state_dir>/engine-names.json``."""

    version: Literal[1] = 1
    # An id by name, and by DEFAULT.
    names: dict[str, str] = field(default_factory=dict)
    # The ids of engines that an operator removed, the last ones.
    removed: list[str] = field(default_factory=list)
    # Orders that are not done yet: a daemon that is restarted in the middle goes on.
    warm_ups: list[WarmOrder] = field(default_factory=list)
    # What hosts' engines load, by compatibility key.
    fits: dict[str, Fit] = field(default_factory=dict)

    def ordered(self, engine_id: str, *orders: WarmOrder) -> Record:
        """Return this with these orders for an engine, and no others."""
        others = [order for order in self.warm_ups if order.engine_id != engine_id]
        return replace(self, warm_ups=[*others, *orders])

    def without(self, engine_id: str) -> Record:
        """Return this with an engine that was removed."""
        before = [each for each in self.removed if each != engine_id]
        return replace(self.ordered(engine_id), removed=[*before, engine_id][-_MAX_REMOVED:])


_RECORD = TypeAdapter(Record)


class NameRecord:
    """The record of a state directory. Every method may block, and raises NotOurs.

    The daemon writes it when names are resolved; ``wasmkilnd engine`` changes it too.
    """

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / "engine-names.json"

    def read(self) -> Record:
        """Return what is recorded: nothing where there is no record, or a damaged one."""
        check_path(self._file)
        try:
            return _RECORD.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return Record()
        except (OSError, ValueError) as failure:
            log.error(
                "cannot read what engines' names stand for: names stand for the newest versions,"
                " and no warm-up is ordered",
                file=str(self._file),
                cause=str(failure) if isinstance(failure, OSError) else "it is damaged",
            )
            return Record()

    def change(self, change: Callable[[Record], Record]) -> None:
        """Replace the record by what ``change`` makes of it. Raises OSError."""
        with locked(self._file.parent):
            write_whole(self._file, _RECORD.dump_json(change(self.read()), indent=1) + b"\n")
