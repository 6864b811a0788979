"""An engine's own interpreter, running ``inside.py``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import wasmkilnd.engines
from wasmkilnd.engines.install import InstalledEngine

from bench.lab import BenchError, end

_PROGRAM = Path(__file__).with_name("inside.py")
_CHILD_FOLDER = Path(wasmkilnd.engines.__file__).parent


class EngineProcess:
    """Compiles without any daemon, in a process of ordinary priority."""

    def __init__(self, engine: InstalledEngine, target: str, cpu: str) -> None:
        self._engine = engine
        self._common = {"target": target, "cpu": cpu}
        self._process = subprocess.Popen(
            [str(engine.interpreter), "-I", "-B", str(_PROGRAM), engine.name, str(_CHILD_FOLDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, operation: str, wasm: Path) -> float:
        """Return the seconds of an operation of ``inside.py``. Raises BenchError."""
        assert self._process.stdin
        assert self._process.stdout
        order = {**self._common, "op": operation, "wasm": str(wasm)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise BenchError(f"{self._engine.id} ended while it compiled {wasm.name} by itself")
        return float(json.loads(answer)["seconds"])

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)
