"""A run keeps what it has measured, whatever happens to the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from bench.__main__ import main
from bench.lab import BenchError
from bench.results import Row
from bench.run import Run
from bench.setting import Setting


@pytest.fixture(autouse=True)
def _no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.__main__.setting", nullcontext)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "run.json"


def _row(group: str) -> Row:
    return Row(group, "what", 1.0, "the yardstick", 2.0, 0.5, (0.4, 0.6), 9, note="a note")


def _good(_: Setting) -> Iterator[Row]:
    yield _row("good")


def _bad(_: Setting) -> Iterator[Row]:
    yield _row("half")
    raise ValueError("no luck\n\ttoday")


def test_a_measurement_that_fails_leaves_the_rows_of_the_others(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def last(_: Setting) -> Iterator[Row]:
        assert [row.group for row in Run.read(file).rows] == ["good", "half"]
        assert (
            "good, what: 1,000 ms; the yardstick: 2,000 ms; ratio 0.50" in capsys.readouterr().out
        )
        yield _row("last")

    assert main(["--file", str(file)], {"first": _good, "bad": _bad, "last": last}) == 2
    printed = capsys.readouterr()
    assert printed.err == ""  # It came before the last row.
    assert "failed: bad: ValueError: no luck today" in printed.out
    assert "last, what: 1,000 ms" in printed.out
    trace = file.with_name("bad.traceback").read_text()
    assert trace.startswith("Traceback")
    assert "in _bad" in trace
    run = Run.read(file)
    assert [row.group for row in run.rows] == ["good", "half", "last"]
    assert run.failed == {"bad": "ValueError: no luck today"}
    assert [*run.seconds] == ["first", "bad", "last"]


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (ValueError("no luck\n\ttoday"), "ValueError: no luck today"),
        (BenchError("the daemon did not start"), "the daemon did not start"),
        (
            AioRpcError(StatusCode.NOT_FOUND, Metadata(), Metadata(), "no such module"),
            "NOT_FOUND: no such module",
        ),
    ],
)
def test_why_it_failed_is_one_line(
    failure: Exception, sentence: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bad(_: Setting) -> Iterator[Row]:
        raise failure

    assert main(["--file", str(file)], {"bad": bad}) == 2
    trace = file.with_name("bad.traceback")
    assert capsys.readouterr().err == f"bench: cannot measure bad: {sentence} ({trace})\n"


def test_a_run_that_is_interrupted_shows_its_rows(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Setting) -> Iterator[Row]:
        yield _row("before")
        raise KeyboardInterrupt

    assert main(["--file", str(file)], {"first": _good, "second": interrupted}) == 130
    table = capsys.readouterr().out.partition("beside its yardsticks")[2]
    assert "good" in table
    assert "before" in table
    assert [row.group for row in Run.read(file).rows] == ["good", "before"]


def test_a_part_of_a_run_makes_a_page_that_says_what_is_missing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["--file", str(file)], {"bad": _bad, "first": _good})
    page, picture = tmp_path / "page.md", tmp_path / "picture.svg"
    monkeypatch.setattr("bench.__main__.PAGE", page)
    monkeypatch.setattr("bench.plot.FILE", picture)
    assert main(["--from", str(file), "--page"], {}) == 2
    run, text = Run.read(file), page.read_text()
    assert f"wasmkiln {run.version}, {run.date}: one run of" in text
    assert "| good: what | 1,000 ms | the yardstick | 2,000 ms |" in text
    assert "- Not measured: bad: ValueError: no luck today" in text
    assert picture.read_bytes().startswith(b"<svg")
