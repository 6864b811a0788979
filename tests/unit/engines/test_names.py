"""What a name stands for: as the operator says, else as before, else the newest version.

It is kept in a file that may be damaged, or not there; so are orders of warm-ups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from wasmkilnd.engines.names import (
    DEFAULT,
    NameChoices,
    NameRecord,
    Record,
    resolve,
    to_record,
)
from wasmkilnd.files.ownership import NotOurs

NEW, OLD, OTHER = "wasmtime-50.0.1", "wasmtime-49.0.0", "wasmer-1.1.0"


def test_what_is_gone_is_followed_by_another_version() -> None:
    choices = NameChoices(recorded={"wasmtime": OLD, DEFAULT: OLD})
    served = [OTHER, NEW]
    names = resolve(choices, served)
    assert (names.by_name["wasmtime"], names.default) == (NEW, NEW)
    assert to_record(choices, names, served, [OTHER, NEW])["wasmtime"] == NEW


def test_what_is_broken_for_now_gets_its_name_back() -> None:
    choices = NameChoices(recorded={"wasmtime": OLD, DEFAULT: OLD})
    served = [NEW]
    names = resolve(choices, served)
    assert names.by_name["wasmtime"] == NEW
    assert to_record(choices, names, served, [NEW, OLD]) == choices.recorded


def test_an_alias_for_what_is_not_served_stands_for_nothing_else() -> None:
    names = resolve(NameChoices({"wasmtime": OLD}), [NEW])
    assert names.by_name == {"wasmtime": OLD}
    assert names.default == NEW  # Nobody chose what requests get that name none.


def test_a_default_that_is_not_served_has_no_other_in_its_place() -> None:
    for default in ("v8", OLD, "wasmer"):
        assert resolve(NameChoices(default=default), [NEW]).default == ""
    assert resolve(NameChoices(), []).default == ""


def names_are(names: dict[str, str]) -> Callable[[Record], Record]:
    return lambda record: replace(record, names=names)


def removed(engine_id: str) -> Callable[[Record], Record]:
    return lambda record: record.without(engine_id)


def test_names_and_what_was_removed_are_kept(tmp_path: Path) -> None:
    record = NameRecord(tmp_path)
    assert record.read() == Record()
    record.change(names_are({"wasmtime": NEW}))
    record.change(removed(OLD))
    record.change(names_are({"wasmtime": "wasmtime-51.0.0"}))
    assert record.read() == Record(names={"wasmtime": "wasmtime-51.0.0"}, removed=[OLD])
    for number in range(100):
        record.change(removed(f"wasmtime-1.0.{number}"))
    last = record.read().removed
    assert (len(last), last[-1]) == (64, "wasmtime-1.0.99")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "[" * 5000, "\0" * 9000, '{"version": 2}', '{"version": 1, "names": 3}'),
        '{"warm_ups": [{"engine_id": "a", "from_engine_id": "b", "top": 1e999}]}',
        '{"warm_ups": [{"engine_id": "a", "from_engine_id": "b", "top": 0}]}',
    ],
)
def test_a_damaged_record_is_none_and_the_log_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "engine-names.json").write_text(text)
    with capture_logs() as logs:
        assert NameRecord(tmp_path).read() == Record()
    # An operator who ordered a warm-up learns that names move at once.
    (line,) = logs
    assert (line["log_level"], line["cause"]) == ("error", "it is damaged")
    NameRecord(tmp_path).change(names_are({"wasmtime": NEW}))
    assert NameRecord(tmp_path).read() == Record(names={"wasmtime": NEW})


def test_a_record_of_the_last_release_is_read(tmp_path: Path) -> None:
    text = '{"version": 1, "names": {"wasmtime": "wasmtime-50.0.1"}, "removed": ["wasmtime-1.0.0"]}'
    (tmp_path / "engine-names.json").write_text(text)
    assert NameRecord(tmp_path).read() == Record(
        names={"wasmtime": NEW}, removed=["wasmtime-1.0.0"]
    )


def test_a_record_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engine-names.json").write_text("{}")
    (tmp_path / "engine-names.json").chmod(0o666)
    with pytest.raises(NotOurs):
        NameRecord(tmp_path).read()
    with pytest.raises(NotOurs):
        NameRecord(tmp_path).change(lambda record: record)
