"""Log lines are short and few, whatever is logged and however often, and say what is missing."""

from __future__ import annotations

import gc
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from wasmkilnd.telemetry import logs

LINES = logs.LIMIT
CALLS = 100

MIB = 2**20
# One line: what its values may take, a traceback, and the names.
LONGEST = 64 * 1024


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logs.flush()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream() -> io.StringIO:
    written = io.StringIO()
    logs.configure("json", "info", written)
    return written


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def deep(levels: int, width: int) -> Any:
    return "x" * 1000 if not levels else [deep(levels - 1, width) for _ in range(width)]


def raised(message: str, depth: int = 0) -> Exception:
    try:
        if depth:
            raise raised(message, depth - 1)
        raise ValueError(message)
    except ValueError as failure:
        return failure


LONG: dict[str, Callable[[], dict[str, Any]]] = {
    "text of what JSON writes in twelve letters": lambda: {"engine": "\U0001f600" * MIB},
    "surrogates": lambda: {"engine": "\ud800" * MIB},
    "bytes": lambda: {"engine": b"\xff" * 15 * MIB},
    "lists of lists": lambda: {"engine": deep(4, 15)},
    "a mapping": lambda: {"engine": {f"{n}": n for n in range(MIB)}},
    "long keys": lambda: {"engine": {"k" * MIB + str(n): n for n in range(9)}},
    "many keys": lambda: {f"key{n}": "a" * 4000 for n in range(500)},
    "an exception": lambda: {"error": ValueError("a" * 15 * MIB)},
    "lines in a traceback": lambda: {"exc_info": raised("a\n" * MIB)},
    "a chain of them": lambda: {"exc_info": raised("a" * 3000, depth=200)},
}


@pytest.mark.parametrize("what", LONG)
def test_a_line_is_short_and_says_what_was_cut(stream: io.StringIO, what: str) -> None:
    structlog.get_logger().error("x", **LONG[what]())
    (line,) = lines(stream)
    assert line["event"] == "x"
    assert len(stream.getvalue()) < LONGEST
    assert "…" in str(line) or "left out" in str(line)


def test_a_cut_value_says_how_long_it_was(stream: io.StringIO) -> None:
    structlog.get_logger().info("x", engine="a" * 15 * MIB)
    (line,) = lines(stream)
    assert line["engine"] == "a" * 2048 + "… (15,728,640 characters, 2,048 shown)"


def test_a_traceback_keeps_its_type_and_its_innermost_frames(stream: io.StringIO) -> None:
    def recurse(left: int) -> None:
        recurse_too(left - 1) if left else json.loads("a" * 15 * MIB)

    def recurse_too(left: int) -> None:
        recurse(left)

    try:
        recurse(300)
    except ValueError:
        structlog.get_logger().exception("x")
    text = lines(stream)[0]["exception"]
    assert "in recurse\n" in text
    assert "in raw_decode" in text
    assert text.splitlines()[-1].startswith("json.decoder.JSONDecodeError: Expecting value")


@pytest.mark.parametrize("before", [0, 100, 2030, 2042, 2048 - 5, 5000])
def test_no_secret_is_left_by_a_cut_through_a_url(stream: io.StringIO, before: int) -> None:
    url = "redis://bob:" + "hunter2" * 3000 + "@host/0"
    structlog.get_logger().info("x", cause="a " * (before // 2) + url + " b" * MIB)
    structlog.get_logger().error("x", exc_info=raised("a " * (before // 8) + url))
    assert "hunter2" not in stream.getvalue()


def test_lines_of_a_kind_are_few_and_the_last_one_says_how_many_are_missing(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs._repeats, "_interval_s", 0.2)
    log = structlog.get_logger()
    for number in range(1000):
        log.warning("tier is down", number=number)
    log.warning("another kind")
    assert len(lines(stream)) == LINES + 1
    deadline = time.monotonic() + 20
    while len(lines(stream)) == LINES + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    last = lines(stream)[-1]
    # The last of all, since it says what is so now; and nothing was lost without a word.
    assert (last["event"], last["number"]) == ("tier is down", 999)
    assert last["left_out"] == 1000 - LINES - 1
    log.warning("tier is down", number=1000)
    assert lines(stream)[-1]["number"] == 1000


def test_a_librarys_lines_are_told_apart_by_where_they_were_written(stream: io.StringIO) -> None:
    library = logging.getLogger("some.library")
    for number in range(500):
        library.warning(f"{number} came from a stranger: it is in the words themselves")
    library.warning("something else")
    assert len(lines(stream)) <= 256 + LINES + 1


def test_kinds_without_bound_take_no_memory_and_write_no_more(stream: io.StringIO) -> None:
    for number in range(5000):
        structlog.get_logger().warning(f"event {number}")
    assert len(lines(stream)) == 256 + LINES
    structlog.get_logger().info("ready")
    logs.flush()
    assert lines(stream)[-1]["left_out"] > 4000


def test_nothing_is_left_out_at_debug() -> None:
    stream = io.StringIO()
    logs.configure("json", "debug", stream)
    for _ in range(200):
        structlog.get_logger().info("x")
    assert len(lines(stream)) == 200


class LogsWhenItDies:
    def __del__(self) -> None:
        structlog.get_logger().error("died", value="a" * 100)


def test_a_finalizer_may_log_in_the_midst_of_a_line_in_any_thread(stream: io.StringIO) -> None:
    def work() -> None:
        for number in range(300):
            circle: list[Any] = [LogsWhenItDies()]
            circle.append(circle)
            structlog.get_logger().info(f"x{number % 50}", value=[1, 2, 3])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    gc.collect()  # Or one of them dies in another test, and logs into what that one reads.


def test_a_new_interval_begins_with_the_last_line_of_the_one_before(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1.0]
    monkeypatch.setattr("wasmkilnd.telemetry.logs.time.monotonic", lambda: now[0])
    log = structlog.get_logger()
    for number in range(LINES + 3):
        log.info("x", number=number)
    now[0] += 10
    log.info("x", number="next")
    *_, last, following = lines(stream)
    assert (last["number"], last["left_out"]) == (LINES + 2, 2)
    assert following["number"] == "next"


def test_a_burst_of_calls_writes_no_more_than_calls_that_are_spread_out(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls_per_s = [1.0], 5000
    monkeypatch.setattr("wasmkilnd.telemetry.logs.time.monotonic", lambda: now[0])
    # The clock of this test goes on by itself: no timer may end an interval.
    monkeypatch.setattr("wasmkilnd.telemetry.logs.threading.Timer.start", lambda _: None)
    log = structlog.get_logger()
    for number in range(3 * calls_per_s):
        now[0] = 1.0 + number / calls_per_s
        log.info("call", code="OK", at_s=now[0])
    logs.flush()
    for began_s in range(1, 4):
        within = [line for line in lines(stream) if began_s <= line["at_s"] < began_s + 1]
        assert CALLS <= len(within) <= CALLS + 2
