"""The audit: its lines, its file, and what is left of both in a flood or on a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wasmkilnd.errors import CannotUse
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.audit import (
    FAILURES,
    INTERVAL_S,
    OTHERS,
    Audit,
    append,
    line_of,
)

DONE: dict[str, Any] = {
    "event": "compile",
    "identity": "token:ci",
    "peer": "192.0.2.1:7",
    "origin": "compiled",
}
REFUSED: dict[str, Any] = {
    "event": "refusal",
    "code": "UNAUTHENTICATED",
    "reason": "CREDENTIALS_MISSING",
}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set."""
    now = [1.0]
    monkeypatch.setattr("wasmkilnd.telemetry.logs.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def audit(path: Path, **options: Any) -> Audit:
    audit = Audit(**options)
    audit.prepare(str(path))()
    return audit


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_texts_of_callers_cannot_forge_a_line_or_make_it_long(path: Path) -> None:
    audit(path).write(**DONE, engine='x"}\n{"event":"admin' + "\N{SNOWMAN}" * 10_000)
    [line] = lines(path)
    assert line["event"] == "compile"
    assert path.stat().st_size < 16_384
    assert path.read_bytes().isascii()
    assert path.stat().st_mode & 0o777 == 0o600


def _append(path: Path, name: str, count: int) -> None:
    written = audit(path)
    for number in range(count):
        written.write(**DONE, request_id=f"{name}-{number}")
        if not number % 100:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                path.rename(path.with_name(f"{name}-{number}.jsonl"))


def test_several_processes_append_while_the_file_is_renamed_and_lose_nothing(path: Path) -> None:
    # A fork would inherit what gRPC's threads were doing in other tests of this process, and crash.
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_append, args=(path, str(n), 1000)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = [line["request_id"] for each in path.parent.iterdir() for line in lines(each)]
    assert len(list(path.parent.iterdir())) > 3
    assert sorted(found) == sorted(f"{n}-{number}" for n in range(4) for number in range(1000))


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_half_a_line_does_not_swallow_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("half a line of a process before")
    written = audit(path)
    real_write: Callable[[int, Any], int] = os.write
    left = [40]

    def little_room(descriptor: int, data: Any) -> int:
        if not left:
            return no_room()
        return real_write(descriptor, data[: left.pop()])

    monkeypatch.setattr(os, "write", little_room)
    written.write(**DONE)
    monkeypatch.setattr(os, "write", real_write)
    written.write(**DONE)
    _, first, *others = path.read_text().splitlines()
    assert len(first) == 39
    assert [json.loads(line)["event"] for line in others] == ["lost", "compile"]


def test_what_is_no_file_is_refused(path: Path) -> None:
    os.mkfifo(path)
    for wrong in (path, path.parent, path.parent / "x" / "y"):
        with pytest.raises(CannotUse, match="cannot write the audit to"):
            Audit().prepare(str(wrong))
        with pytest.raises(OSError):
            append(wrong, line_of(**DONE))


def test_of_a_flood_of_failures_some_are_written_and_the_others_counted(
    path: Path, now: list[float]
) -> None:
    written = audit(path)
    for _ in range(1000):
        written.write(**REFUSED)
    written.write(**{**REFUSED, "identity": "token:ci"})  # another caller's is not hidden
    for _ in range(300):
        written.write(**DONE)  # what succeeds is not limited
    assert len(lines(path)) == FAILURES + 1 + 300
    now[0] += INTERVAL_S
    for _ in range(1000):
        written.write(**REFUSED)
    told = lines(path)[FAILURES + 301 :]
    assert [line.get("left_out") for line in told] == [1000 - FAILURES] + [None] * FAILURES
    assert told[0]["reason"] == "CREDENTIALS_MISSING"
    written.close()
    assert lines(path)[-1]["left_out"] == 1000 - FAILURES


def test_what_was_left_out_of_a_flood_is_told_when_it_is_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.telemetry.audit.INTERVAL_S", 0.2)
    written = audit(path)
    for _ in range(FAILURES + 5):
        written.write(**REFUSED)
    deadline = time.monotonic() + 20
    while len(lines(path)) == FAILURES and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lines(path)[-1]["left_out"] == 5


def test_however_many_identities_there_are_few_are_remembered(path: Path, now: list[float]) -> None:
    written = audit(path)
    count = 10 * logs.KINDS
    for number in range(count):
        written.write(**{**REFUSED, "identity": f"jwt:{number}"})
    written.close()
    *_, last = lines(path)
    assert last["identity"] == OTHERS
    assert len(lines(path)) - 2 + last["left_out"] == count
