"""Pins: what daemons know of them, how they agree, and what Pin and Evict refuse."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from wasmkilnd.cache.pin_file import PinFile
from wasmkilnd.cache.value.pins import MAX_LIST_BYTES, read_list, read_record, write_record
from wasmkilnd.errors import Reason
from wasmkilnd.model import MAX_PINS, STAMP_BYTES, EvictScope, PinTimes, Refusal
from wasmkilnd.pin_service import Unpinned
from wasmkilnd.pins import Pins
from wasmkilnd.requests import LoadRequest

from tests.unit.services import CORE, Rig, refused

A, B = "a" * 64, "b" * 64
TIMES = st.builds(PinTimes, st.integers(0, 9), st.integers(0, 9))
KNOWN = st.dictionaries(st.sampled_from([A, B]), TIMES)


@given(st.lists(KNOWN, max_size=4))
def test_daemons_agree_in_whatever_order_they_hear_of_pins(
    heard: list[dict[str, PinTimes]],
) -> None:
    known = []
    for order in itertools.permutations(heard):
        pins = Pins()
        for each in order:
            pins.learn(each)
        known.append((dict(pins.times), set(pins.pinned)))
        assert all(pins.is_pinned(module) for module in pins.pinned)
    assert all(each == known[0] for each in known)


def test_the_last_change_counts_even_if_the_clock_stands_still() -> None:
    pins = Pins(lambda: 1.0)
    assert not pins.unpin(A)
    for _ in range(3):
        pins.pin(A)
        assert pins.is_pinned(A)
        assert pins.unpin(A)
        assert not pins.is_pinned(A)
    assert len(pins) == 0


def test_what_was_learned_is_told() -> None:
    pins = Pins()
    assert pins.learn({A: PinTimes(1, 0)}).pinned == {A}
    assert pins.learn({A: PinTimes(1, 0)}) == pins.learn({})
    assert pins.learn({A: PinTimes(1, 1)}).unpinned == {A}
    assert pins.learn({A: PinTimes(1, 0)}).pinned == frozenset()


def test_unpinned_modules_are_remembered_up_to_a_number() -> None:
    pins = Pins()
    pins.learn({f"{number:064x}": PinTimes(1, 2 + number) for number in range(MAX_PINS + 5)})
    assert len(pins.times) == MAX_PINS
    assert f"{4:064x}" not in pins.times
    assert f"{5:064x}" in pins.times


def test_the_file_keeps_what_each_daemon_knew(tmp_path: Path) -> None:
    file = PinFile(tmp_path, "team-a")
    assert file.exchange({}) == {}
    assert file.exchange({A: PinTimes(5, 0)}) == {}
    assert PinFile(tmp_path, "team-a").exchange({B: PinTimes(7, 0)}) == {A: PinTimes(5, 0)}
    assert file.exchange({A: PinTimes(5, 6)}) == {A: PinTimes(5, 0), B: PinTimes(7, 0)}
    assert file.read() == {A: PinTimes(5, 6), B: PinTimes(7, 0)}
    assert PinFile(tmp_path, "").read() == {}
    assert file.path.stat().st_mode & 0o077 == 0
    file.path.write_bytes(b"{")
    with capture_logs() as logs:
        assert file.exchange({A: PinTimes(5, 6)}) == {}
    assert logs[0]["event"].startswith("the list of pins is damaged")
    with capture_logs() as logs:
        assert file.read() == {A: PinTimes(5, 6)}
    assert logs == []


def test_a_time_that_no_answer_can_hold_is_malformed() -> None:
    text = b'{"pins":{"%b":[%d,0]}}'
    assert read_list(text % (A.encode(), 253_402_300_799_999))
    assert not read_list(text % (A.encode(), 253_402_300_800_000))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"pins":[]}',
        b"[" * 100_000,
        b'{"pins":{"x":[1,2]}}',
        b'{"pins":{"%b":[1]}}' % A.encode(),
        b'{"pins":{"%b":[1,-1]}}' % A.encode(),
        b'{"pins":{"%b":[1,true]}}' % A.encode(),
        b'{"pins":{"%b":["1",2]}}' % A.encode(),
    ],
)
def test_of_a_malformed_list_nothing_counts(text: bytes) -> None:
    assert read_list(text) == {}


def test_a_list_without_a_valid_stamp_is_none() -> None:
    def check(message: bytes, stamp: bytes) -> Refusal | None:
        return None if stamp == STAMP_BYTES * b"s" else Refusal("mismatch", "forged")

    record = write_record(b"name", {A: PinTimes(3, 1)}, lambda _: STAMP_BYTES * b"s")
    assert read_record(b"name", record, check) == {A: PinTimes(3, 1)}
    assert read_record(b"name", b"x" + record[1:], check) is None
    assert read_record(b"name", b"", check) is None
    assert read_record(b"name", record + MAX_LIST_BYTES * b" ", check) is None


async def test_pin_unpin_and_evict() -> None:
    rig = Rig()
    digest = (await rig.modules.load(LoadRequest(CORE, "", ""))).module.sha256
    missing = await refused(rig.pins.pin(A))
    assert missing.reason is Reason.MODULE_NOT_LOADED
    assert missing.message.endswith("compile it first")
    assert (await refused(rig.pins.pin("x"))).reason is Reason.INVALID_REQUEST
    assert (await refused(rig.pins.unpin("x"))).reason is Reason.INVALID_REQUEST
    pinned = await rig.pins.pin(digest)
    assert pinned.reached_redis
    assert pinned.pin.tiers["memory"].modules == 1
    assert [pin.module_sha256 for pin in await rig.pins.listed()] == [digest]
    since_ms = pinned.pin.pinned_ms
    assert (await rig.pins.pin(digest)).pin.pinned_ms == since_ms
    kept = await refused(rig.modules.evict(EvictScope(module_sha256=digest), ""))
    assert kept.reason is Reason.MODULE_PINNED
    evicted, _ = await rig.modules.evict(EvictScope(), "")
    assert (evicted.modules, evicted.pinned) == (0, 1)
    assert await rig.memory.has_module(digest)
    rig.pinned_tiers.answers = False
    assert await rig.pins.unpin(digest) == Unpinned(True, False)
    assert await rig.pins.unpin(digest) == Unpinned(False, False)
    rig.pinned_tiers.answers = True
    evicted, _ = await rig.modules.evict(EvictScope(module_sha256=digest), "")
    assert (evicted.modules, evicted.pinned) == (1, 0)


async def test_pins_take_half_of_a_tier_at_most() -> None:
    rig = Rig()
    digest = (await rig.modules.load(LoadRequest(CORE, "", ""))).module.sha256
    rig.memory.resize(2 * rig.memory.usage().bytes - 1)
    full = await refused(rig.pins.pin(digest))
    assert full.reason is Reason.PINS_FULL
    assert full.metadata == {
        "tier": "memory",
        "bytes": str(rig.memory.usage().bytes),
        "limit_bytes": str(rig.memory.usage().limit_bytes),
    }
    rig.memory.resize(2 * rig.memory.usage().bytes)
    await rig.pins.pin(digest)
