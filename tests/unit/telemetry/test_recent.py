"""The list of recent compiles is short, whatever callers send."""

from __future__ import annotations

from wasmkilnd.telemetry.metrics.recent import KEPT, RecentCompiles


def test_the_newest_comes_first() -> None:
    recent = RecentCompiles(clock=iter([1.0, 2.0]).__next__)
    recent.add("a" * 64, "wasmer-1.1.0", "compiled", "", 0.5)
    recent.add("b" * 64, "", "", "COMPILE_TIMEOUT", 30.0)
    newest, oldest = recent.newest_first()
    assert (newest.module, newest.reason, newest.ended_s) == ("b" * 64, "COMPILE_TIMEOUT", 2.0)
    assert (oldest.engine, oldest.origin, oldest.took_s) == ("wasmer-1.1.0", "compiled", 0.5)


def test_what_ends_alike_is_one_row() -> None:
    """A caller that tries again and again does not push out what others see."""
    recent = RecentCompiles(clock=iter([1.0, 2.0, 3.0, 4.0]).__next__)
    recent.add("a" * 64, "wasmer-1.1.0", "compiled", "", 0.5)
    for _ in range(3):
        recent.add("b" * 64, "", "", "COMPILE_QUEUE_FULL", 0.001)
    again, first = recent.newest_first()
    assert (again.count, again.ended_s) == (3, 4.0)
    assert first.count == 1


def test_no_more_is_kept_than_the_page_shows_nor_more_text_than_a_name_has() -> None:
    recent = RecentCompiles()
    for number in range(3 * KEPT):
        recent.add(f"{number} {'x' * 10_000}", "y" * 10_000, "", "MODULE_INVALID", 0.1)
    kept = recent.newest_first()
    assert len(kept) == KEPT
    assert kept[0].module.startswith(f"{3 * KEPT - 1} ")
    assert max(len(each.module) + len(each.engine) for each in kept) <= 160
