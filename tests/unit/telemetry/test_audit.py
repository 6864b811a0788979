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
from structlog.testing import capture_logs
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.audit import (
    FAILURES,
    INTERVAL_S,
    OTHERS,
    Audit,
    CannotAudit,
    append,
    line_of,
)

LINES = FAILURES
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


def test_a_line_has_what_there_is_to_tell_and_nothing_empty(path: Path) -> None:
    audit(path).write(**DONE, uploaded=True)
    [line] = lines(path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "compile",
        "identity": "token:ci",
        "peer": "192.0.2.1:7",
        "code": "OK",
        "origin": "compiled",
        "uploaded": True,
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_texts_of_callers_cannot_forge_a_line_or_make_it_long(path: Path) -> None:
    audit(path).write(**DONE, engine='x"}\n{"event":"admin' + "\N{SNOWMAN}" * 10_000)
    [line] = lines(path)
    assert line["event"] == "compile"
    assert path.stat().st_size < 16_384
    assert path.read_bytes().isascii()


def test_an_audit_that_is_off_writes_nothing() -> None:
    off = Audit()
    off.write(**DONE)
    assert not off.on


def test_a_file_that_others_rename_or_delete_is_made_anew(path: Path) -> None:
    written = audit(path)
    written.write(**DONE, request_id="1")
    path.rename(path.with_suffix(".old"))
    written.write(**DONE, request_id="2")
    path.unlink()
    written.write(**DONE, request_id="3")
    assert [line["request_id"] for line in lines(path.with_suffix(".old"))] == ["1"]
    assert [line["request_id"] for line in lines(path)] == ["3"]


def _append(path: Path, name: str, count: int) -> None:
    written = audit(path)
    for number in range(count):
        written.write(**DONE, request_id=f"{name}-{number}")
        if not number % 100:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                path.rename(path.with_name(f"{name}-{number}.jsonl"))


def test_several_processes_append_while_the_file_is_renamed_and_lose_nothing(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_append, args=(path, str(n), 1000)) for n in range(4)]
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


def test_a_full_disk_loses_lines_says_so_once_and_tells_how_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    written = audit(path, lost=lost.append)
    written.write(**DONE)
    real_write = os.write
    with capture_logs() as logged:
        monkeypatch.setattr(os, "write", no_room)
        for _ in range(3):
            written.write(**DONE)
        monkeypatch.setattr(os, "write", real_write)
        written.write(**DONE)
    assert [line["event"] for line in logged] == [
        "cannot write the audit",
        "the audit is written again",
    ]
    assert logged[0]["cause"] == "No space left on device"
    assert sum(lost) == 3
    assert [line["event"] for line in lines(path)] == ["compile", "lost", "compile"]
    assert lines(path)[1]["lines"] == 3


def test_half_a_line_does_not_swallow_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    first, *others = path.read_text().splitlines()
    assert len(first) == 40
    assert [json.loads(line)["event"] for line in others] == ["lost", "compile"]


def test_another_target_is_used_from_then_on(path: Path, tmp_path: Path) -> None:
    written = audit(path)
    written.write(**DONE)
    other = tmp_path / "other.jsonl"
    apply = written.prepare(str(other))
    written.write(**DONE)
    apply()
    written.write(**DONE)
    written.prepare("")()
    written.write(**DONE)
    assert (len(lines(path)), len(lines(other))) == (2, 1)


def test_half_a_line_of_a_process_before_does_not_swallow_the_next(path: Path) -> None:
    path.write_text('{"time":')
    audit(path).write(**DONE)
    assert json.loads(path.read_text().splitlines()[1])["event"] == "compile"


@pytest.mark.parametrize("kind", ["folder", "fifo", "missing folder"])
def test_what_is_no_file_is_refused(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = path / "x" / "y"
    with pytest.raises(CannotAudit, match="cannot write the audit to"):
        Audit().prepare(str(path))
    with pytest.raises(OSError):
        append(path, line_of(**DONE))


def test_of_a_flood_of_failures_some_are_written_and_the_others_counted(
    path: Path, now: list[float]
) -> None:
    written = audit(path)
    for _ in range(1000):
        written.write(**REFUSED)
    written.write(**{**REFUSED, "identity": "token:ci"})  # another caller's is not hidden
    for _ in range(300):
        written.write(**DONE)  # what succeeds is not limited
    assert len(lines(path)) == LINES + 1 + 300
    now[0] += INTERVAL_S
    for _ in range(1000):
        written.write(**REFUSED)
    told = lines(path)[LINES + 301 :]
    assert [line.get("left_out") for line in told] == [1000 - LINES] + [None] * LINES
    assert told[0]["reason"] == "CREDENTIALS_MISSING"
    written.close()
    assert lines(path)[-1]["left_out"] == 1000 - LINES


def test_what_was_left_out_of_a_flood_is_told_when_it_is_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.telemetry.audit.INTERVAL_S", 0.2)
    written = audit(path)
    for _ in range(LINES + 5):
        written.write(**REFUSED)
    deadline = time.monotonic() + 20
    while len(lines(path)) == LINES and time.monotonic() < deadline:
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


def test_lines_go_to_the_log_if_asked() -> None:
    with capture_logs() as logged:
        written = Audit()
        written.prepare("log")()
        written.write(**DONE)
    assert logged[0]["event"] == "audit"
    assert logged[0]["act"] == "compile"
    assert logged[0]["identity"] == "token:ci"
