"""Labels that cannot grow without end."""

from __future__ import annotations

import threading

from wasmkilnd.telemetry.metrics.series import Count, Family


def values(family: Family[Count]) -> dict[tuple[str, ...], int]:
    return {labels: count.value for labels, count in family.all()}


def test_what_was_added_stands_at_zero() -> None:
    family = Family("n", "Help.", ("a",), Count)
    family.add("x")
    assert values(family) == {("x",): 0}
    family.at("x").add(3)
    assert family.add("x").value == 3


def test_what_was_not_is_other() -> None:
    family = Family("n", "Help.", ("a", "b"), Count)
    family.add("x", "y")
    for index in range(100):
        family.at("x", f"{index}").add()
    assert values(family) == {("x", "y"): 0, ("other", "other"): 100}


def test_what_is_known_of_the_labels_is_kept() -> None:
    family = Family("n", "Help.", ("a", "b"), Count)
    family.add("x", "other")
    family.at("x", "new").add()
    family.at("new", "new").add()
    assert values(family) == {("x", "other"): 1, ("other", "other"): 1}
    assert family.known("x", "new") == ("x", "other")
    assert family.known("new", "new") == ("other", "other")


def test_room_is_for_so_many_and_no_more() -> None:
    family = Family("n", "Help.", ("a",), Count, room=2)
    for name in ("x", "y", "x", "z", "w"):
        family.at(name).add()
    assert values(family) == {("x",): 2, ("y",): 1, ("other",): 2}


def test_threads_lose_nothing() -> None:
    family = Family("n", "Help.", ("a",), Count, room=4)

    def count() -> None:
        for index in range(4000):
            family.at(f"{index % 6}").add()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(values(family).values()) == 16000
    assert len(values(family)) == 5
