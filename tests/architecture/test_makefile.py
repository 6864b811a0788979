"""`make help` lists every target on a line that fits a terminal."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_every_target_on_a_line_that_fits() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [targets] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    lines = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    told = [re.fullmatch(r"  make ([a-z-]+) +\S.*", line) for line in lines]
    assert [match and match[1] for match in told] == targets.split()
    assert [line for line in lines if len(line) >= 100] == []
