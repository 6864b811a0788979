"""Which engine a request gets, and what it is told of one that is not served any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from wasmkilnd import errors
from wasmkilnd.engines.names import NameChoices, resolve
from wasmkilnd.engines.registry import EngineTable, ServedEngine
from wasmkilnd.errors import Reason

NEW, OLD, OTHER = "wasmtime-50.0.1", "wasmtime-49.0.0", "wasmer-1.1.0"


@dataclass
class Engine:
    """An engine without workers."""

    id: str
    there: bool = True

    @property
    def name(self) -> str:
        return self.id.partition("-")[0]

    def is_installed(self) -> bool:
        return self.there


def serve(*ids: str, **choices: Any) -> tuple[Sequence[ServedEngine], Any]:
    engines = cast(list[ServedEngine], [Engine(each) for each in ids])
    return engines, resolve(NameChoices(**choices), ids)


def reason(table: EngineTable, engine: str) -> Reason:
    assert engine not in table.ids
    refused = table.not_served(engine)
    assert refused.metadata["engine"]
    return refused.reason


def test_ids_and_names_are_found() -> None:
    table = EngineTable(*serve(OTHER, NEW, OLD, aliases={"wasmtime": OLD}))
    assert [table.ids[each] for each in (OLD, NEW, "wasmtime", "wasmer")] == [OLD, NEW, OLD, OTHER]
    assert list(table.served) == [OTHER, OLD, NEW]


def test_what_was_served_is_told_apart_from_what_never_was() -> None:
    table = EngineTable(*serve(OTHER, NEW))
    table.serve(*serve(OTHER))
    assert {reason(table, each) for each in (NEW, "wasmtime")} == {Reason.ENGINE_REMOVED}
    assert reason(table, OLD) is Reason.ENGINE_UNKNOWN
    table.removed = {OLD}  # Before this daemon started.
    assert reason(table, OLD) is Reason.ENGINE_REMOVED
    assert reason(table, "v8") is Reason.ENGINE_UNKNOWN
    table.serve(*serve(OTHER, NEW))
    assert table.ids["wasmtime"] == NEW


def test_only_what_broke_without_the_files_is_a_removal() -> None:
    table = EngineTable(*serve(OTHER, NEW))
    crashed = errors.compiler_crashed(NEW, "ended with exit code 70", "")
    invalid = errors.module_invalid(NEW, "bad", None)
    assert table.explained(NEW, crashed) is crashed
    cast(Engine, table.known[NEW]).there = False
    explained = table.explained(NEW, crashed)
    assert (explained.reason, explained.metadata["engines"]) == (Reason.ENGINE_REMOVED, OTHER)
    assert explained.fault is errors.Fault.NONE
    assert table.explained(NEW, invalid) is invalid
