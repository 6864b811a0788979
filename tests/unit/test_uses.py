"""Uses are counted, fade, and are bounded; records of them are read only as they were written."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wasmkilnd.cache.value.use_records import (
    UseRecord,
    from_json,
    owner_of,
    read_record,
    to_json,
    write_record,
)
from wasmkilnd.usage.file import UseFile
from wasmkilnd.uses import HALF_LIFE_S, MAX_USES, Tally, UsedSpec, Uses, summed

from tests.contract.sealing import THEIRS, sealer
from tests.contract.values import artifact

SPEC = UsedSpec("wasmtime-49.0.0", "x86_64-unknown-linux-gnu", "baseline", (("opt_level", "none"),))
OTHER = replace(SPEC, engine_id="wasmtime-50.0.1", settings=())
NOW_S = time.time()
OWNER = b"0123456789abcdef"


def digest(number: int) -> str:
    return f"{number:064x}"


def test_a_tally_counts_by_artifact_and_begins_anew() -> None:
    tally, made = Tally(), artifact()
    for _ in range(3):
        if (key := made.key) in tally.counts:
            tally.counts[key] += 1
        else:
            tally.begin(made)
    [((module_sha256, spec), count)] = tally.take().items()
    assert (module_sha256, count) == (made.module_sha256, 3.0)
    assert spec == UsedSpec.of(made.spec)
    assert tally.take() == {}


def test_a_tally_has_a_bound() -> None:
    tally, made = Tally(), artifact()
    for number in range(2 * MAX_USES + 10):
        tally.begin(replace(made, module_sha256=digest(number)))
    assert len(tally.counts) == 2 * MAX_USES


def test_what_lies_back_counts_less_and_then_nothing() -> None:
    uses = Uses({(digest(1), SPEC): 8.0, (digest(2), SPEC): 0.015}, NOW_S)
    uses.add(Uses({(digest(1), SPEC): 1.0}, NOW_S + HALF_LIFE_S))
    assert uses.counts == {(digest(1), SPEC): 5.0}
    # What comes late counts as of when it was counted.
    uses.add(Uses({(digest(3), SPEC): 4.0}, NOW_S))
    assert uses.counts[(digest(3), SPEC)] == 2.0
    assert uses.at_s == NOW_S + HALF_LIFE_S


def test_of_too_many_those_used_least_are_forgotten() -> None:
    many = Uses({(digest(n), SPEC): float(n) for n in range(1, MAX_USES + 1)}, NOW_S)
    many.add(Uses({(digest(0), OTHER): 1e6}, NOW_S))
    assert len(many.counts) == MAX_USES
    assert (digest(1), SPEC) not in many.counts
    assert many.most(1) == [((digest(0), OTHER), 1e6)]
    assert many.of_engine(OTHER.engine_id).counts == {(digest(0), OTHER): 1e6}


def test_a_record_says_what_was_written_and_bounds_hold_for_the_largest() -> None:
    largest = Uses({(digest(n), SPEC): n + 0.5 for n in range(MAX_USES)}, NOW_S)
    ours = sealer()
    record = write_record(UseRecord(largest, OWNER, left=True), b"ns", ours.stamp)
    assert owner_of(record) == OWNER
    read = read_record(record, b"ns", ours.check_stamp)
    assert read
    assert (read.owner, read.left, read.uses.counts) == (OWNER, True, largest.counts)


def test_a_record_that_no_trusted_key_signed_says_nothing() -> None:
    record = write_record(
        UseRecord(Uses({(digest(1), SPEC): 1.0}, NOW_S), OWNER, False), b"ns", sealer(THEIRS).stamp
    )
    assert read_record(record, b"ns", sealer().check_stamp) is None
    ours = sealer()
    record = write_record(
        UseRecord(Uses({(digest(1), SPEC): 1.0}, NOW_S), OWNER, False), b"ns", ours.stamp
    )
    for spoilt in (record[:-1], record + b" ", record[:120], b"", record[:96]):
        assert read_record(spoilt, b"ns", ours.check_stamp) is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"at": -1},
        {"at": NOW_S + 1e6},
        {"at": "now"},
        {"uses": [["00", 0, 1.0]]},
        {"uses": [[digest(1), 7, 1.0]]},
        {"uses": [[digest(1), 0, -1.0]]},
        {"uses": [[digest(1), 0, 1e300]]},
        {"uses": [[digest(1), 0, None]]},
        {"uses": [[7, 0, 1.0]]},
        {"uses": [[digest(1), 0, 1.0]] * (MAX_USES + 1)},
        {"specs": [["e", "t", "c", {"a": "b" * 999}]]},
        {"specs": [["e", "t", 7, {}]]},
        {"specs": [["e", "t", "c", []]]},
        {"specs": [["e"]]},
        {"specs": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_texts_are_no_uses(change: dict[str, Any]) -> None:
    text = to_json(Uses({(digest(1), SPEC): 1.0}, NOW_S))
    assert from_json(text)
    assert from_json(json.dumps(json.loads(text) | change).encode()) is None


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"null", b"NaN"])
def test_other_bytes_are_no_uses(text: bytes) -> None:
    assert from_json(text) is None


def test_a_file_sums_what_daemons_on_one_state_directory_add(tmp_path: Path) -> None:
    one, other = UseFile(tmp_path, ""), UseFile(tmp_path, "")
    assert one.read().counts == {}
    assert one.add(Uses({(digest(1), SPEC): 1.0}, NOW_S))
    assert other.add(Uses({(digest(1), SPEC): 2.0, (digest(2), SPEC): 1.0}, NOW_S))
    assert one.read().counts == {(digest(1), SPEC): 3.0, (digest(2), SPEC): 1.0}
    assert UseFile(tmp_path, "team").read().counts == {}
    (tmp_path / "uses" / "default.json").write_bytes(b"{")
    assert other.read().counts == {}
    assert other.add(Uses({(digest(3), SPEC): 1.0}, NOW_S))
    assert one.read().counts == {(digest(3), SPEC): 1.0}


def test_a_file_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "uses").write_text("a file")
    assert not UseFile(tmp_path, "").add(Uses({(digest(1), SPEC): 1.0}, NOW_S))
    assert UseFile(tmp_path, "").read().counts == {}


def test_sums_of_none_are_none() -> None:
    assert summed([]).counts == {}
