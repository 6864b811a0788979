"""Programs that answer orders: how one is started, asked and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.lab import ROOT, BenchError, end


class Program:
    """A program of the bench that reads lines of JSON, and answers each with one."""

    def __init__(
        self, stack: ExitStack, module: str, *arguments: str, packages: Path | None = None
    ) -> None:
        """Start it, with ``packages`` beside those of this process; ``stack`` ends it."""
        path = os.pathsep.join(
            each for each in (os.environ.get("PYTHONPATH"), packages and str(packages)) if each
        )
        self._name = " ".join([module, *arguments[:2]])
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(end, self._process)

    def begun(self) -> dict[str, Any]:
        """Return the line that it prints once it is ready."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._name} ended by itself")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise BenchError(f"{self._name} printed no answer: {line.strip()}") from None
        return answer

    def ask(self, **order: object) -> dict[str, Any]:
        """Give an order, and return the answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self.begun()
