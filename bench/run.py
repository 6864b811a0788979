"""One run: its rows as they come, what could not be measured, and the page that shows it all."""

from __future__ import annotations

import json
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc

from bench.lab import ROOT, BenchError
from bench.machine import describe
from bench.results import Row, as_json, from_json, in_one_line, markdown, wrapped
from bench.setting import Setting

PAGE = ROOT / "docs" / "reference" / "performance.md"

_SENTENCE_CHARACTERS = 300
_HEAD = """# Performance figures

Each figure beside its yardstick: [where the time goes, and how it is
measured](../explanation/performance.md).

![Each ratio with its goal, on a logarithmic axis](performance.svg)
"""

Measurements = Mapping[str, Callable[[Setting], Iterator[Row]]]


@dataclass
class Run:
    """What one run has measured so far."""

    version: str = field(default_factory=lambda: version("wasmkiln"))
    date: str = field(default_factory=lambda: time.strftime("%d %B %Y").lstrip("0"))
    machine: str = field(default_factory=describe)
    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Why, for each measurement that did not come to its end."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each measurement took."""

    def measure(self, measurements: Measurements, given: Setting, file: Path) -> None:
        """Print each row when it comes, and write the run to ``file``; a failure ends only its own.

        The traceback of a failure goes into a file beside ``file``.
        """
        for name, measure in measurements.items():
            print(f"{name}:", flush=True)
            began = time.monotonic()
            try:
                for row in measure(given):
                    self.rows.append(row)
                    print(f"  {in_one_line(row)}", flush=True)
                    self.write(file)
            except Exception as failure:
                trace = file.with_name(f"{name}.traceback")
                trace.write_text(traceback.format_exc())
                self.failed[name] = _sentence(failure)
                print(
                    f"bench: cannot measure {name}: {self.failed[name]} ({trace})", file=sys.stderr
                )
            self.seconds[name] = round(time.monotonic() - began, 1)
            self.write(file)

    def write(self, file: Path) -> None:
        """Write all there is, so that a reader never sees a part of it."""
        described = {**asdict(self), "rows": [as_json(row) for row in self.rows]}
        new = file.with_suffix(".new")
        new.write_text(json.dumps(described, indent=1))
        new.replace(file)

    @classmethod
    def read(cls, file: Path) -> Run:
        """Return the run that was written."""
        described = json.loads(file.read_text())
        return cls(**{**described, "rows": [from_json(row) for row in described["rows"]]})

    def __str__(self) -> str:
        """Return in one sentence what was measured, when and where."""
        return (
            f"wasmkiln {self.version}, {self.date}: one run of {sum(self.seconds.values()):,.0f} s"
            f" on {self.machine}."
        )

    def page(self) -> str:
        """Return docs/reference/performance.md."""
        failed = [
            wrapped(f"- Not measured: {name}: {why}", "  ") for name, why in self.failed.items()
        ]
        return "\n".join([_HEAD, wrapped(str(self)), "", markdown(self.rows), *failed, ""])


def _sentence(failure: Exception) -> str:
    """Return why something failed, in one line."""
    if isinstance(failure, grpc.RpcError):
        call: Any = failure  # Its text is a paragraph.
        return f"{call.code().name}: {call.details()}"
    words = textwrap.shorten(str(failure), _SENTENCE_CHARACTERS)
    return words if isinstance(failure, BenchError) else f"{type(failure).__name__}: {words}"
