"""A warm load, from asking for the module to having it in the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

from bench.lab import ROOT, BenchError
from bench.results import Row, compare
from bench.setting import Setting

_TIMEOUT_S = 120


def warm(given: Setting) -> Iterator[Row]:
    """Call and load, beside what wasmtime can do alone on one machine."""
    module = given.modules.medium
    series = _measure(given)
    what = f"{module.name}: raw call and deserialize"
    group = "warm load into wasmtime"
    yield compare(group, what, series["raw"], "its own local cache", series["cache"])
    yield compare(group, what, series["raw"], "compiling again", series["recompile"])
    yield compare(group, what, series["raw"], "deserialize_file (maps it)", series["mapped"])
    what = f"{module.name}: Client.compile and load"
    yield compare(group, what, series["client"], "its own local cache", series["cache"])


def _measure(given: Setting) -> dict[str, list[float]]:
    engine = given.wasmtime.engine
    packages = given.wasmtime.packages
    folder = given.folder / "warm"
    folder.mkdir()
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(packages)])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.warm", given.daemon.address, engine.id),
            *(str(given.modules.medium.path), str(folder)),
            *(str(given.rounds(100)), str(given.rounds(6))),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise BenchError(f"warm loads could not be measured: {words[-1] if words else ''}")
    answer: dict[str, list[float]] = json.loads(done.stdout)
    return answer
