"""What a name stands for: as the operator says, else as before, else the newest version."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from wasmkilnd.engines.names import (
    DEFAULT,
    NameChoices,
    moved_to,
    name_of,
    named_first,
    resolve,
    to_record,
)


@dataclass(frozen=True)
class Engine:
    id: str

    @property
    def name(self) -> str:
        return name_of(self.id)


def engines(*ids: str) -> list[Engine]:
    return [Engine(each) for each in ids]


NEW, OLD, OTHER = "wasmtime-50.0.1", "wasmtime-49.0.0", "wasmer-1.1.0"


def test_at_first_a_name_stands_for_the_first() -> None:
    names = resolve(NameChoices(), engines(OTHER, NEW, OLD), [])
    assert names.by_name == {"wasmer": OTHER, "wasmtime": NEW}
    assert names.default == OTHER


def test_a_further_version_or_engine_changes_nothing() -> None:
    first = engines(OLD)
    names = resolve(NameChoices(), first, [])
    record = to_record(NameChoices(), names, first, [OLD])
    assert record == {"wasmtime": OLD, DEFAULT: OLD}
    choices, served = NameChoices(recorded=record), engines(OTHER, NEW, OLD)
    names = resolve(choices, served, [])
    assert names.by_name == {"wasmer": OTHER, "wasmtime": OLD}
    assert names.default == OLD
    assert [each.id for each in named_first(served, names)] == [OTHER, OLD, NEW]
    assert to_record(choices, names, served, [OTHER, NEW, OLD]) == {**record, "wasmer": OTHER}


def test_what_is_gone_is_followed_by_another_version() -> None:
    choices = NameChoices(recorded={"wasmtime": OLD, DEFAULT: OLD})
    served = engines(OTHER, NEW)
    names = resolve(choices, served, [])
    assert (names.by_name["wasmtime"], names.default) == (NEW, NEW)
    assert to_record(choices, names, served, [OTHER, NEW])["wasmtime"] == NEW


def test_what_is_broken_for_now_gets_its_name_back() -> None:
    choices = NameChoices(recorded={"wasmtime": OLD, DEFAULT: OLD})
    served = engines(NEW)
    names = resolve(choices, served, [OLD])
    assert names.by_name["wasmtime"] == NEW
    assert to_record(choices, names, served, [NEW, OLD]) == choices.recorded


def test_an_alias_is_stronger_and_is_remembered() -> None:
    choices = NameChoices({"wasmtime": OLD}, "wasmtime", {"wasmtime": NEW})
    served = engines(NEW, OLD)
    names = resolve(choices, served, [])
    assert names.by_name == {"wasmtime": OLD}
    assert names.default == OLD
    record = to_record(choices, names, served, [NEW, OLD])
    assert record == {"wasmtime": OLD, DEFAULT: OLD}
    assert resolve(NameChoices(recorded=record), served, []) == resolve(
        NameChoices(recorded={"wasmtime": OLD, DEFAULT: OLD}), served, []
    )


def test_an_alias_for_what_is_not_served_stands_for_nothing_else() -> None:
    names = resolve(NameChoices({"wasmtime": OLD}), engines(NEW), [OLD])
    assert names.by_name == {"wasmtime": OLD}
    assert names.default == NEW  # Nobody chose what requests get that name none.


def test_a_default_that_is_not_there() -> None:
    with pytest.raises(LookupError):
        resolve(NameChoices(default="v8"), engines(NEW), [])
    assert resolve(NameChoices(default=OLD), engines(NEW), [OLD]).default == ""
    assert resolve(NameChoices(default="wasmer"), engines(NEW), [OTHER]).default == ""
    assert resolve(NameChoices(), [], []).default == ""


def test_names_move_to_an_engine_with_what_stood_for_another_version() -> None:
    assert moved_to({"wasmtime": OLD, DEFAULT: OLD}, NEW) == {"wasmtime": NEW, DEFAULT: NEW}
    assert moved_to({"wasmtime": OLD, DEFAULT: OTHER}, NEW) == {"wasmtime": NEW, DEFAULT: OTHER}
