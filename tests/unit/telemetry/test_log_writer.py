"""The thread that writes the log: nobody waits for a reader who stalls, and what is lost counts."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator

import pytest
from wasmkilnd.telemetry.logs import LINES, Line, Writer

from tests.e2e.processes import eventually

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


def fill(descriptor: int) -> int:
    """Write to a pipe until nothing more fits; return how many bytes that were."""
    os.set_blocking(descriptor, False)
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += os.write(descriptor, b"." * 4096)
    os.set_blocking(descriptor, True)
    return size


def read_behind(descriptor: int, until: bytes) -> tuple[threading.Thread, bytearray]:
    """Read in a thread until ``until`` was read."""
    found = bytearray()

    def read() -> None:
        while not found.endswith(until):
            found.extend(os.read(descriptor, 65536))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, found


def numbered(found: bytes) -> list[int]:
    return [int(line.split()[0]) for line in found.decode().splitlines()]


def test_a_reader_who_stalls_makes_nobody_wait_and_learns_what_was_dropped(
    pipe: tuple[int, int],
) -> None:
    size = fill(pipe[1])
    writer = Writer(pipe[1])
    put(writer, 0)
    eventually(writer._queue.empty, "the thread does not write")  # and waits for the reader
    for number in range(1, LINES + 6):
        put(writer, number)
    assert writer.dropped == 5
    reader, found = read_behind(pipe[0], b"last\n")
    eventually(lambda: b"dropped 5\n" in found, "not told")
    put(writer, "last")
    reader.join(LIMIT_S)
    assert found.count(b"dropped") == 1
    rest = bytes(found[size:]).replace(b"dropped 5\n", b"").removesuffix(b"last\n")
    assert numbered(rest) == list(range(LINES + 1))
    assert writer.dropped == 5
    assert writer.end(LIMIT_S)


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
    put(writer, "next")
    assert writer.end(LIMIT_S)
    assert os.read(pipe[0], 100) == b"half\nnext\ndropped 1\n"


def test_text_comes_whole_whatever_its_letters_and_length(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1])
    reader, found = read_behind(pipe[0], b"end\n")
    long = "y" * 64 * 1024
    put(writer, "x \ud800 caf\u00e9")
    put(writer, long)
    put(writer, "end")
    assert writer.end(LIMIT_S)
    reader.join(LIMIT_S)
    assert bytes(found).decode() == f"x \\ud800 caf\u00e9\n{long}\nend\n"


def test_a_line_that_cannot_be_rendered_is_counted_and_holds_up_no_other(
    pipe: tuple[int, int],
) -> None:
    writer = Writer(pipe[1])
    writer.put(json.dumps, {"odd": object()})
    put(writer, "next")
    assert writer.end(LIMIT_S)
    assert os.read(pipe[0], 100) == b"next\ndropped 1\n"
