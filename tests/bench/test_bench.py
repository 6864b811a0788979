"""Every measurement of the benchmark goes on working, and a run keeps what it has measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from xml.etree import ElementTree

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from bench import __main__, plot
from bench.__main__ import MEASUREMENTS, main
from bench.lab import ROOT, BenchError, Setting
from bench.rows import Row, Unit, figure

_ROW = Row("group", "what", 0.002, "the yardstick", 0.001, 2.0, (1.9, 2.1), 1.5, "long " * 40)
_CELLS = "| group: what | 2.00 ms | the yardstick | 1.00 ms | 2.00 | 1.90 to 2.10 |"


@pytest.mark.timeout(1200)
def test_every_measurement_has_rows(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--file", str(file)],
        cwd=ROOT,
        # Without engines in the user's own state, those of tests are taken.
        env={**os.environ, "WASMKILN_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^([\w-]+):\n  ", done.stdout, re.MULTILINE) == list(MEASUREMENTS)
    run = json.loads(file.read_text())
    assert all(row["ours"] > 0 and row["yardstick"] > 0 for row in run["rows"])
    assert list(run["seconds"]) == list(MEASUREMENTS)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.000_002_15, "s", "2.15 µs"),
        (0.000_35, "s", "0.35 ms"),
        (0.6172, "s", "617 ms"),
        (12.34, "s", "12.3 s"),
        (78_700_000, "B", "78.7 MB"),
        (2_997_000_000, "B", "3.00 GB"),
    ],
)
def test_a_figure_has_three_digits_and_its_unit(value: float, unit: Unit, text: str) -> None:
    assert figure(value, unit) == text


def test_each_ratio_and_each_goal_is_a_dot_of_a_picture_without_scripts() -> None:
    rows = [_ROW, Row("group", "fast", 0.05, "", 1.0, 0.05, (0.05, 0.05), 0.1)]
    drawn = plot.svg(rows)
    found = ElementTree.fromstring(drawn).findall(".//{http://www.w3.org/2000/svg}circle[@class]")
    assert len([dot for dot in found if "dot" in dot.attrib["class"]]) == 4
    assert b"<script" not in drawn
    assert plot.svg(rows) == drawn


def _good(_: Setting) -> Iterator[Row]:
    yield _ROW


def _half(failure: BaseException) -> Iterator[Row]:
    yield _ROW
    raise failure


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
def test_a_measurement_that_fails_is_named_and_leaves_the_rows_of_the_others(
    failure: Exception,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, page, picture = (tmp_path / name for name in ("new/run.json", "page.md", "picture.svg"))
    monkeypatch.setattr(__main__, "setting", nullcontext)
    monkeypatch.setattr(__main__, "PAGE", page)
    monkeypatch.setattr(plot, "FILE", picture)
    measurements = {"first": _good, "bad": lambda _: _half(failure), "last": _good}
    assert main(["--file", str(file), "--page"], measurements) == 2
    printed, trace = capsys.readouterr(), file.with_name("bad.traceback")
    assert printed.err == f"bench: cannot measure bad: {sentence} ({trace})\n"
    assert "in _half" in trace.read_text()
    run = json.loads(file.read_text())
    assert (len(run["rows"]), run["failed"]) == (3, {"bad": sentence})
    assert [*run["seconds"]] == ["first", "bad", "last"]
    text = page.read_text()
    assert f"wasmkiln {run['version']}, {run['date']}: one run of" in text
    assert f"{_CELLS} ≤ 1.5, **missed** |" in text
    assert f"- Not measured: bad: {sentence}" in text
    assert max(map(len, text.partition("- group, what: long long")[2].splitlines())) < 100
    assert picture.read_bytes().startswith(b"<?xml")


def test_a_run_that_is_interrupted_shows_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "setting", nullcontext)
    file = tmp_path / "run.json"
    measurements = {"first": _good, "second": lambda _: _half(KeyboardInterrupt())}
    assert main(["--file", str(file)], measurements) == 130
    assert capsys.readouterr().out.partition("# Performance figures")[2].count("yardstick") >= 2
    assert len(json.loads(file.read_text())["rows"]) == 2
