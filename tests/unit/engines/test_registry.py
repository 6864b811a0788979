"""Which engine a request gets, and what it is told of one that is not served any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
from wasmkilnd import errors
from wasmkilnd.engines.names import NameChoices
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import Reloadable

from tests.unit.engines.limits import LIMITS

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


def serve(registry: EngineRegistry, *ids: str, **choices: Any) -> None:
    registry.serve(cast(Any, [Engine(each) for each in ids]), NameChoices(**choices))


@pytest.fixture
def registry() -> EngineRegistry:
    one = EngineRegistry(Reloadable(LIMITS))
    serve(one, OTHER, NEW)
    return one


def refusal(registry: EngineRegistry, engine: str) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as refused:
        registry.choose(engine, None)
    return refused.value


def reason(registry: EngineRegistry, engine: str) -> Reason:
    refused = refusal(registry, engine)
    assert refused.metadata["engine"]
    return refused.reason


def test_ids_and_names_are_found(registry: EngineRegistry) -> None:
    serve(registry, OTHER, NEW, OLD, aliases={"wasmtime": OLD})
    asked = (OLD, NEW, "wasmtime", "wasmer")
    assert [registry.choose(each, None) for each in asked] == [OLD, NEW, OLD, OTHER]
    assert [each.id for each in registry.served] == [OTHER, OLD, NEW]


def test_what_was_served_is_told_apart_from_what_never_was(registry: EngineRegistry) -> None:
    serve(registry, OTHER)
    assert {reason(registry, each) for each in (NEW, "wasmtime")} == {Reason.ENGINE_REMOVED}
    assert reason(registry, OLD) is Reason.ENGINE_UNKNOWN
    serve(registry, OTHER, removed={OLD})  # Before this daemon started.
    assert reason(registry, OLD) is Reason.ENGINE_REMOVED
    assert reason(registry, "v8") is Reason.ENGINE_UNKNOWN
    serve(registry, OTHER, NEW)
    assert registry.choose("wasmtime", None) == NEW


def test_a_default_that_is_not_served_is_named_as_it_is_now(registry: EngineRegistry) -> None:
    serve(registry, OTHER, default=OLD)
    assert refusal(registry, "").metadata["engine"] == OLD
    serve(registry, OTHER, default=NEW)
    assert refusal(registry, "").metadata["engine"] == NEW


def test_only_what_broke_without_the_files_is_a_removal(registry: EngineRegistry) -> None:
    crashed = errors.compiler_crashed(NEW, "ended with exit code 70", "")
    invalid = errors.module_invalid(NEW, "bad", None)
    assert registry._explained(NEW, crashed) is crashed
    cast(Any, registry._known[NEW]).there = False
    explained = registry._explained(NEW, crashed)
    assert (explained.reason, explained.metadata["engines"]) == (Reason.ENGINE_REMOVED, OTHER)
    assert explained.fault is errors.Fault.NONE
    assert registry._explained(NEW, invalid) is invalid
