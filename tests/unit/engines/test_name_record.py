"""What names stand for is kept in a file that may be damaged, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkilnd.engines.install.name_record import NameRecord
from wasmkilnd.ownership import NotOurs


def test_names_and_what_was_removed_are_kept(tmp_path: Path) -> None:
    record = NameRecord(tmp_path)
    assert (record.read(), record.removed()) == ({}, frozenset())
    record.write({"wasmtime": "wasmtime-50.0.1"})
    record.note_removed("wasmtime-49.0.0")
    record.write({"wasmtime": "wasmtime-51.0.0"})
    assert record.read() == {"wasmtime": "wasmtime-51.0.0"}
    assert record.removed() == {"wasmtime-49.0.0"}
    for number in range(100):
        record.note_removed(f"wasmtime-1.0.{number}")
    assert len(record.removed()) == 64
    assert "wasmtime-1.0.99" in record.removed()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "names": 3}'])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "engine-names.json").write_text(text)
    assert NameRecord(tmp_path).read() == {}
    NameRecord(tmp_path).write({"wasmtime": "wasmtime-50.0.1"})
    assert NameRecord(tmp_path).read() == {"wasmtime": "wasmtime-50.0.1"}


def test_what_is_no_name_is_passed_over(tmp_path: Path) -> None:
    text = '{"version": 1, "names": {"wasmtime": "../x", "A": "b", "wasmer": "wasmer-1.1.0"}}'
    (tmp_path / "engine-names.json").write_text(text)
    assert NameRecord(tmp_path).read() == {"wasmer": "wasmer-1.1.0"}


def test_a_record_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engine-names.json").write_text("{}")
    (tmp_path / "engine-names.json").chmod(0o666)
    with pytest.raises(NotOurs):
        NameRecord(tmp_path).read()
