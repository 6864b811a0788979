"""Log lines: readable, cheap, whole and without secrets; few; and nobody waits for a reader."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import structlog
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.logs import Line, Writer, configure, mask_text

from tests.e2e.processes import eventually


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logs.flush()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def to_json(level: str = "info") -> tuple[io.StringIO, Any]:
    stream = io.StringIO()
    configure("json", level, stream)
    return stream, structlog.get_logger("test")


def test_auto_is_json_but_on_a_terminal() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    configure("auto", "info", pipe)
    structlog.get_logger().info("call", code="OK")
    configure("auto", "info", terminal)
    structlog.get_logger().info("call", code="OK")
    (line,) = lines(pipe)
    assert (line["event"], line["level"], line["code"]) == ("call", "info", "OK")
    assert line["timestamp"].endswith("Z")
    age = datetime.now(UTC) - datetime.fromisoformat(line["timestamp"])
    assert abs(age.total_seconds()) < 60
    assert "call" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_libraries_log_in_the_same_lines() -> None:
    stream, _ = to_json()
    library = logging.getLogger("some.library")
    library.info("chatter")
    library.warning("to %s", "redis://bob:hunter2@h:1")
    library.warning("too %s %s", "few")
    try:
        raise ValueError("redis://bob:hunter2@h:1")
    except ValueError:
        library.exception("failed")
    got = lines(stream)
    assert [line["event"] for line in got] == ["to redis://***@h:1", "too %s %s", "failed"]
    assert got[0]["level"] == "warning"
    assert got[0]["logger"] == "some.library"
    assert "Traceback" in got[2]["exception"]
    assert "hunter2" not in stream.getvalue()


class Colour(Enum):
    RED = "red"


def test_values_are_written_as_plainly_as_possible() -> None:
    stream, log = to_json()
    log.info(
        "x",
        path=Path("/a"),
        colour=Colour.RED,
        many=("a", 1, None, True),
        nested={"a": {"b": 1}},
        nan=float("nan"),
        infinite=float("inf"),
        raw=b"\xff",
        text="\u2028 \ud800 é",
    )
    (line,) = lines(stream)
    assert line["path"] == "/a"
    assert line["colour"] == "red"
    assert line["many"] == ["a", 1, None, True]
    assert line["nested"] == {"a": {"b": 1}}
    assert (line["nan"], line["infinite"]) == ("nan", "inf")
    assert line["raw"] == "b'\\xff'"


SECRETS: list[dict[str, Any]] = [
    {"url": "redis://bob:hunter2@h:1/0"},
    {"url": "see rediss://:hunter2/@x?y@h:1/0 there"},
    {"url": "redis://h:1/0?db=1&password=hunter2&x=1"},
    {"password": "hunter2"},
    {"redis_password": "hunter2"},
    {"REST_TOKEN": "hunter2"},
    {"client_secret": ["hunter2"]},
    {"private_key": b"hunter2"},
    {"authorization": "Bearer hunter2"},
    {"nested": {"deep": [{"token": "hunter2"}]}},
    {"nested": [("redis://a:hunter2@h",)]},
    {"error": ConnectionError("redis://a:hunter2@h")},
    {"deep": [[[[[[{"url": "redis://a:hunter2@h"}]]]]]]},
]


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("values", SECRETS, ids=str)
def test_no_secret_is_written(log_format: str, values: dict[str, Any]) -> None:
    stream = io.StringIO()
    configure(log_format, "info", stream)
    structlog.get_logger().info("x", **values)
    assert "***" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_secret_is_written_in_events_and_tracebacks(log_format: str) -> None:
    stream = Terminal()
    configure(log_format, "info", stream)
    password = "redis://bob:hunter2@h"  # a local variable, which rich would print
    try:
        raise ConnectionError(password)
    except ConnectionError:
        structlog.get_logger().exception(f"no {password}")
    assert "ConnectionError" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["://" * 100_000 + "@", "@" + "://" * 100_000, "://?passw" + "passw" * 60_000]
)
def test_masking_ends_for_texts_made_to_be_slow(text: str) -> None:
    """Quadratic time would take hours here, and run into the test's own limit."""
    assert len(mask_text(text)) <= len(text)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("hunter2")


def test_a_line_that_cannot_be_made_raises_nothing() -> None:
    stream, log = to_json()
    circle: list[Any] = []
    circle.append(circle)
    log.info("x", value=Unprintable())
    log.info("y", circle=circle, odd={(1, 2): 3})
    lost, fine = lines(stream)
    assert lost["event"] == "log line lost"
    assert lost["failure"] == "RuntimeError"
    assert fine["event"] == "y"
    assert "hunter2" not in stream.getvalue()


def test_a_callers_text_cannot_steer_a_terminal() -> None:
    stream = io.StringIO()
    configure("text", "info", stream)
    structlog.get_logger().info("x\x1b[2J\nforged line", cause="\x1b]0;title\x07\r\nforged")
    assert len(stream.getvalue().splitlines()) == 1
    structlog.get_logger().error("x", exc_info=ValueError("\x1b[2J\x07"))
    assert "\x1b" not in stream.getvalue()
    assert "\x07" not in stream.getvalue()
    assert "ValueError" in stream.getvalue().splitlines()[-1]


@pytest.mark.parametrize("log_format", ["auto", "json", "text"])
def test_lines_for_the_journal_begin_with_their_priority_and_no_others_do(
    monkeypatch: pytest.MonkeyPatch, log_format: str
) -> None:
    ours, journal = socket.socketpair()
    other, reader = socket.socketpair()
    with ours, journal, other, reader, ours.makefile("w") as journaled, other.makefile("w") as file:
        found = os.fstat(ours.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        configure(log_format, "debug", journaled)
        log = structlog.get_logger("wasmkilnd")
        log.debug("one")
        log.info("two")
        log.warning("three")
        logging.getLogger("library").warning("four")
        log.error("five", exc_info=ValueError("six\nseven"))
        lines = journal.recv(65536).decode().splitlines()
        assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<4>", "<3>"]
        # A traceback as text has many lines, and each of them is an entry of the journal.
        assert {line[:3] for line in lines[4:]} == {"<3>"}
        if log_format != "text":
            assert json.loads(lines[-1][3:])["level"] == "error"
        configure("json", "info", file)
        log.info("one")
        assert reader.recv(4096).startswith(b'{"timestamp"')


# Lines are short and few, whatever is logged and however often, and say what is missing.

CALLS = 100

MIB = 2**20
# One line: what its values may take, a traceback, and the names.
LONGEST = 64 * 1024


@pytest.fixture
def stream() -> io.StringIO:
    return to_json()[0]


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
    # A thousand lines take less, on a busy machine too.
    monkeypatch.setattr(logs._repeats, "_interval_s", 2.0)
    log = structlog.get_logger()
    for number in range(1000):
        log.warning("tier is down", number=number)
    log.warning("another kind")
    assert len(lines(stream)) == logs.LIMIT + 1
    deadline = time.monotonic() + 20
    while len(lines(stream)) == logs.LIMIT + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    last = lines(stream)[-1]
    # The last of all, since it says what is so now; and nothing was lost without a word.
    assert (last["event"], last["number"]) == ("tier is down", 999)
    assert last["left_out"] == 1000 - logs.LIMIT - 1
    log.warning("tier is down", number=1000)
    assert lines(stream)[-1]["number"] == 1000


def test_a_librarys_lines_are_told_apart_by_where_they_were_written(stream: io.StringIO) -> None:
    library = logging.getLogger("some.library")
    for number in range(500):
        library.warning(f"{number} came from a stranger: it is in the words themselves")
    library.warning("something else")
    assert len(lines(stream)) <= 256 + logs.LIMIT + 1


def test_kinds_without_bound_take_no_memory_and_write_no_more(stream: io.StringIO) -> None:
    for number in range(5000):
        structlog.get_logger().warning(f"event {number}")
    assert len(lines(stream)) == 256 + logs.LIMIT
    structlog.get_logger().info("ready")
    logs.flush()
    assert lines(stream)[-1]["left_out"] > 4000


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
    for number in range(logs.LIMIT + 3):
        log.info("x", number=number)
    now[0] += 10
    log.info("x", number="next")
    *_, last, following = lines(stream)
    assert (last["number"], last["left_out"]) == (logs.LIMIT + 2, 2)
    assert following["number"] == "next"


def test_a_burst_of_calls_writes_no_more_than_calls_that_are_spread_out(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls_per_s = [1.0], 5000
    monkeypatch.setattr("wasmkilnd.telemetry.logs.time.monotonic", lambda: now[0])
    # The clock of this test goes on by itself: no timer may end an interval.
    monkeypatch.setattr("wasmkilnd.telemetry.logs.threading.Timer.start", lambda _: None)
    for number in range(3 * calls_per_s):
        now[0] = 1.0 + number / calls_per_s
        logs.note_call("info", {"code": "OK", "at_s": now[0]})
    logs.flush()
    for began_s in range(1, 4):
        within = [line for line in lines(stream) if began_s <= line["at_s"] < began_s + 1]
        assert CALLS <= len(within) <= CALLS + 2


# The thread that writes the log: nobody waits for a reader who stalls, and what is lost counts


LIMIT_S = 60.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def render(line: Line) -> str:
    """Return the text of a line of these tests, or how many lines were dropped."""
    return str(line.get("text", f"dropped {line.get('lines')}"))


def put(writer: Writer, text: object) -> None:
    writer.put(render, {"text": text})


def test_what_cannot_be_written_is_counted_and_told_later() -> None:
    readable, writable = os.pipe()
    writer = Writer(writable)
    os.close(readable)
    put(writer, "one")
    put(writer, "two")
    eventually(lambda: writer.dropped == 2, "not counted")
    # Somebody reads again.
    readable, other = os.pipe()
    os.dup2(other, writable)
    put(writer, "three")
    assert writer.end(LIMIT_S)
    assert os.read(readable, 100) == b"three\ndropped 2\n"
    for descriptor in (readable, writable, other):
        os.close(descriptor)


def test_half_a_line_does_not_become_part_of_the_next(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    room = [4]

    def little_room(descriptor: int, data: bytes) -> int:
        if not room:
            raise OSError
        return real_write(descriptor, data[: room.pop()])

    writer = Writer(pipe[1])
    monkeypatch.setattr(os, "write", little_room)
    put(writer, "half a line")
    eventually(lambda: writer.dropped == 1, "not counted")
    monkeypatch.setattr(os, "write", real_write)
    put(writer, "x \ud800 caf\u00e9")
    assert writer.end(LIMIT_S)
    assert os.read(pipe[0], 100).decode() == "half\nx \\ud800 caf\u00e9\ndropped 1\n"


def test_a_line_that_cannot_be_rendered_is_counted_and_holds_up_no_other(
    pipe: tuple[int, int],
) -> None:
    writer = Writer(pipe[1])
    writer.put(json.dumps, {"odd": object()})
    put(writer, "next")
    assert writer.end(LIMIT_S)
    assert os.read(pipe[0], 100) == b"next\ndropped 1\n"
