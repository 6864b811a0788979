"""Which node serves which slots."""

from __future__ import annotations

from typing import Any

import pytest
from wasmkilnd.cache.redis.cluster_map import SlotMap, node_named, slot_of

ASKED = ("asked", 7000)


def test_each_slot_has_its_owner() -> None:
    slots = SlotMap.read(
        [
            [8192, 16383, [b"b", 2, b"id", []], [b"c", 3, b"id"]],
            [0, 8191, [b"a", 1, b"id"]],
        ],
        ASKED,
    )
    assert slots.owner(0) == slots.owner(8191) == ("a", 1)
    assert slots.owner(8192) == slots.owner(16383) == ("b", 2)
    assert slots.primaries == {("a", 1), ("b", 2)}
    assert slots.complete


def test_slots_may_have_none() -> None:
    slots = SlotMap.read([[10, 20, ["a", 1]], [30, 30, ["a", 1]]], ASKED)
    assert [slots.owner(slot) for slot in (9, 10, 20, 21, 30, 31)] == [
        *(None, ("a", 1), ("a", 1), None, ("a", 1), None)
    ]
    assert not slots.complete
    assert SlotMap().owner(0) is None


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_a_node_without_a_name_is_at_the_host_that_was_asked(host: bytes | None) -> None:
    assert SlotMap.read([[0, 1, [host, 9]]], ASKED).owner(0) == ("asked", 9)
    assert node_named("", 8, ASKED) == ("asked", 8)
    assert node_named("h", 8, ASKED) == ("h", 8)


@pytest.mark.parametrize(
    "answer", [None, 7, b"OK", [], [1], [[0, 1]], [[0, 1, []]], [["a", "b", [b"h", 1]]]]
)
def test_what_cannot_be_read_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match=r"CLUSTER SLOTS|no cluster"):
        SlotMap.read(answer, ASKED)


def test_the_slot_is_that_of_the_key() -> None:
    assert slot_of(("GET", b"{user}x")) == slot_of(("SET", "{user}y", b"v")) == 5474
    assert slot_of(("EVAL", "return 1", 1, b"{user}", b"{other}")) == 5474
    assert slot_of(("GET", b"123456789")) == 12739
