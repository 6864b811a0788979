"""Every measurement of the benchmark goes on working."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import MEASUREMENTS
from bench.lab import ROOT
from bench.run import Run

# It keeps every CPU busy, also those of tests that run beside this one.
LEFT_OUT = {"busy"}


@pytest.mark.timeout(1200)
def test_every_measurement_has_rows(tmp_path: Path) -> None:
    names = [name for name in MEASUREMENTS if name not in LEFT_OUT]
    file = tmp_path / "run.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--quick", "--file", str(file)),
            *(word for name in names for word in ("--only", name)),
        ],
        cwd=ROOT,
        # Without engines in the user's own state, those of tests are taken.
        env={**os.environ, "WASMKILN_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^([\w-]+):\n  ", done.stdout, re.MULTILINE) == names
    run = Run.read(file)
    assert all(row.ours > 0 and row.yardstick > 0 for row in run.rows)
    assert list(run.seconds) == names
