"""The thread that writes the log: nobody waits for a reader who stalls, and what is lost counts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmkilnd.telemetry.logs.writer import BYTES, LINES, LineWriter, as_text

from tests.e2e.processes import eventually

SOON_S = 0.05
LIMIT_S = 60.0


class Told:
    """What the writer tells of dropped lines."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, count: int) -> None:
        self.counts.append(count)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


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


def test_a_reader_who_reads_gets_all_in_order(pipe: tuple[int, int]) -> None:
    reader, found = read_behind(pipe[0], b"last\n")
    told = Told()
    writer = LineWriter(pipe[1], told)
    for number in range(LINES):
        writer.write(b"%d %s\n" % (number, b"x" * 100))
    eventually(lambda: not writer._lines, "lines are left")
    writer.write(b"last\n")
    assert writer.end(LIMIT_S)
    reader.join(LIMIT_S)
    assert numbered(bytes(found).removesuffix(b"last\n")) == list(range(LINES))
    assert (writer.dropped, told.counts) == (0, [])


def test_a_reader_who_stalls_makes_nobody_wait_and_learns_what_was_dropped(
    pipe: tuple[int, int],
) -> None:
    counts: list[int] = []

    def tell(count: int) -> None:
        counts.append(count)
        writer.write(b"told\n")

    size = fill(pipe[1])
    writer = LineWriter(pipe[1], tell)
    for number in range(LINES + 5):
        writer.write(b"%d\n" % number)
    assert (writer.dropped, counts) == (5, [])
    reader, found = read_behind(pipe[0], b"told\n")
    reader.join(LIMIT_S)
    assert numbered(bytes(found[size:]).removesuffix(b"told\n")) == list(range(LINES))
    assert (writer.dropped, counts) == (5, [5])
    assert writer.end(LIMIT_S)


def test_the_end_does_not_wait_for_a_reader_who_stalls(pipe: tuple[int, int]) -> None:
    size = fill(pipe[1])
    writer = LineWriter(pipe[1], Told())
    writer.write(b"last\n")
    assert not writer.end(SOON_S)
    reader, found = read_behind(pipe[0], b"last\n")
    reader.join(LIMIT_S)
    assert found[size:] == b"last\n"


def test_lines_are_bounded_in_bytes(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], Told())
    line = b"x" * (BYTES // 4 - 8) + b"\n"
    for _ in range(9):
        writer.write(line)
    assert writer.dropped == 5
    writer.write(b"last\n")
    reader, found = read_behind(pipe[0], b"last\n")
    assert writer.end(LIMIT_S)
    reader.join(LIMIT_S)
    assert found == 4 * line + b"last\n"


def test_what_cannot_be_written_is_counted_and_told_later() -> None:
    readable, writable = os.pipe()
    told = Told()
    writer = LineWriter(writable, told)
    os.close(readable)
    writer.write(b"one\n")
    writer.write(b"two\n")
    eventually(lambda: writer.dropped == 2, "not counted")
    # Somebody reads again.
    readable, other = os.pipe()
    os.dup2(other, writable)
    writer.write(b"three\n")
    assert writer.end(LIMIT_S)
    assert told.counts == [2]
    assert os.read(readable, 100) == b"three\n"
    for descriptor in (readable, writable, other):
        os.close(descriptor)


def test_a_full_disk_is_counted() -> None:
    with Path("/dev/full").open("wb") as full:
        writer = LineWriter(full.fileno(), Told())
        writer.write(b"one\n")
        assert writer.end(LIMIT_S)
    assert writer.dropped == 1


def test_a_descriptor_that_does_not_block_loses_nothing(pipe: tuple[int, int]) -> None:
    size = fill(pipe[1])
    os.set_blocking(pipe[1], False)
    writer = LineWriter(pipe[1], Told())
    for number in range(LINES):
        writer.write(b"%d\n" % number)
    reader, found = read_behind(pipe[0], b"%d\n" % (LINES - 1))
    assert writer.end(LIMIT_S)
    reader.join(LIMIT_S)
    assert numbered(bytes(found[size:])) == list(range(LINES))
    assert writer.dropped == 0


def test_text_comes_whole_whatever_its_letters_and_length(pipe: tuple[int, int]) -> None:
    stream = as_text(writer := LineWriter(pipe[1], Told()))
    reader, found = read_behind(pipe[0], b"end\n")
    long = "y" * 64 * 1024
    print("x", end=" ", file=stream)
    print(f"\ud800 caf\u00e9\n{long}", file=stream)
    stream.write("end\n")
    assert writer.end(LIMIT_S)
    reader.join(LIMIT_S)
    assert bytes(found).decode() == f"x \\ud800 caf\u00e9\n{long}\nend\n"
    assert stream.fileno() == pipe[1]
    assert not stream.isatty()


def test_what_comes_after_the_end_counts_as_dropped(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], lambda _: None)
    writer.write(b"one\n")
    assert writer.end(LIMIT_S)
    writer.write(b"two\n")
    assert (os.read(pipe[0], 100), writer.dropped) == (b"one\n", 1)
