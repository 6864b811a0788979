"""Which engine a name stands for: what the operator says, else what it stood for before.

A further version that is installed changes no name. So that a restart changes none either, what
each name stands for is kept in the state directory (``NameRecord``). An order of a warm-up
(``WarmOrders``) keeps names from a new engine until what is used most is compiled for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import structlog
from pydantic import BaseModel, Field

from wasmkilnd.ownership import check_path
from wasmkilnd.usage import MAX_USES
from wasmkilnd.whole_files import write_whole

log = structlog.get_logger("wasmkilnd.engines")

DEFAULT = "default"
"""What stands in a record for requests that name no engine."""

_MAX_REMOVED = 64


class _Engine(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


E = TypeVar("E", bound=_Engine)
F = TypeVar("F", bound=BaseModel)


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


def resolve(choices: NameChoices, served: Sequence[_Engine]) -> Names:
    """Return what names stand for where ``served`` are the engines, the preferred ones first.

    A default that is not served has no other in its place, which the operator did not choose.
    """
    ids = {engine.id for engine in served}
    by_name: dict[str, str] = {}
    for engine in served:
        before = choices.recorded.get(engine.name, "")
        by_name.setdefault(engine.name, before if before in ids else engine.id)
    first = by_name[served[0].name] if served else ""
    by_name |= choices.aliases
    if choices.default:
        wanted = [choices.default, by_name.get(choices.default, "")]
    else:
        before = choices.recorded.get(DEFAULT, "")
        # Of an engine that is gone, another version is nearer than another engine.
        wanted = [before, by_name.get(name_of(before), ""), by_name.get(name_of(first), ""), first]
    return Names(by_name, next((each for each in wanted if each in ids), ""))


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


class _Record(BaseModel):
    version: Literal[1] = 1
    names: dict[str, str]
    removed: list[str] = []


class _Order(BaseModel):
    version: Literal[1] = 1
    source: str = Field(alias="from")
    top: int = Field(ge=1, le=MAX_USES)


def _read(form: type[F], path: Path, event: str, **about: Any) -> F | None:
    """Return what a file holds; None if it is not there, or damaged, of which the log tells."""
    try:
        return form.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as failure:
        cause = str(failure) if isinstance(failure, OSError) else "it is damaged"
        log.error(event, cause=cause, **about)
        return None


class NameRecord:
    """What names stand for, and which engines were removed: ``<state_dir>/engine-names.json``.

    The daemon writes it when names are resolved; ``wasmkilnd engine use`` and ``remove`` change
    it. Every method may block, and raises NotOurs.
    """

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / "engine-names.json"

    def read(self) -> tuple[dict[str, str], list[str]]:
        """Return an id by name, and the ids of engines that an operator removed, the last ones.

        Both are empty where there is no record, or a damaged one.
        """
        check_path(self._file)
        event = "cannot read what engines' names stand for: names stand for the newest versions"
        found = _read(_Record, self._file, event, file=str(self._file))
        return (found.names, found.removed) if found else ({}, [])

    def write(self, names: Mapping[str, str], removed: str = "") -> None:
        """Replace what names stand for; remember that an engine was ``removed``. Raises OSError."""
        gone = [each for each in self.read()[1] if each != removed]
        gone = [*gone, *([removed] if removed else [])][-_MAX_REMOVED:]
        document = _Record(names=dict(sorted(names.items())), removed=gone)
        write_whole(self._file, document.model_dump_json(indent=1).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class WarmOrder:
    """What to compile before names stand for an engine."""

    engine_id: str
    from_engine_id: str
    top: int
    """How many of the artifacts that are used most."""


class WarmOrders:
    """Orders in a state directory: ``<state_dir>/warm-ups/<new engine>.json``.

    An order stays until the work is done, so a daemon that is restarted in the middle goes on.
    Every method may block.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "warm-ups"

    def write(self, order: WarmOrder) -> None:
        """Write an order, in the place of an earlier one for the same engine.

        Raises OSError, and NotOurs where a daemon would refuse to read it.
        """
        check_path(self._folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        document = _Order(**{"from": order.from_engine_id, "top": order.top})
        write_whole(self._file(order.engine_id), document.model_dump_json(by_alias=True).encode())

    def read(self, engine_ids: Iterable[str]) -> list[WarmOrder]:
        """Return the orders for these engines. Raises NotOurs.

        Pass over what is no order; the log says so, since names do not wait for that engine.
        """
        check_path(self._folder)
        event = "cannot use the order of a warm-up: names do not wait for it"
        advice = "write it again: wasmkilnd engine install … --warm-from …"
        return [
            WarmOrder(each, order.source, order.top)
            for each in engine_ids
            if (order := _read(_Order, self._file(each), event, engine=each, advice=advice))
        ]

    def remove(self, engine_id: str) -> None:
        """Remove the order for an engine, if there is one. Raises OSError."""
        self._file(engine_id).unlink(missing_ok=True)

    def _file(self, engine_id: str) -> Path:
        return self._folder / f"{engine_id}.json"
