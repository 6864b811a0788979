"""``make demo``: a real module, both engines, and what each tier saves."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Started as a file, Python looks for imports beside it; as a module, this changes nothing.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table
from wasmkiln import Artifact, Client, WasmkilnError
from wasmkiln.v1 import types_pb2
from wasmkilnd.engines.install import InstalledEngine

from bench.lab import (
    ENGINE_NAMES,
    ROOT,
    BenchError,
    Daemon,
    come_to_rest,
    engines_in,
    make_state,
    user_state_dir,
)
from bench.rows import figure
from tests.corpus.fetch import CorpusMismatch, CorpusUnavailable, fetch
from tests.corpus.modules import BY_NAME

MODULE = BY_NAME["quickjs-wasi"]
CALLERS = 20

_RUN_TIMEOUT_S = 30
_HITS = 15


def main() -> int:
    """Run the demo. Return the exit code; every failure is one sentence."""
    try:
        _demonstrate(Console(highlight=False))
    except (BenchError, CorpusUnavailable, CorpusMismatch, WasmkilnError) as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _demonstrate(console: Console) -> None:
    engines = engines_in(user_state_dir())
    if missing := [name for name in ENGINE_NAMES if name not in engines]:
        raise BenchError(f"no {' and no '.join(missing)}: run `wasmkilnd engine install` first")
    size = f"{MODULE.size_bytes / 1e6:.1f} MB of C"
    console.print(f"{MODULE.name}: {size}, a JavaScript engine ({MODULE.requirement} on PyPI).")
    table = Table("engine", "where the artifact came from", "time", "times faster", box=None)
    wasm = fetch(MODULE)
    with tempfile.TemporaryDirectory(prefix="wasmkiln-demo-") as name, console.status("working"):
        folder = Path(name)
        state = make_state(folder / "state", engines.values())
        found: dict[str, list[tuple[str, float]]] = {}
        with Daemon(state, "--host-store-bytes", "0") as daemon, daemon.client() as client:
            for engine in engines.values():
                seconds, artifact = _compile(client, wasm, engine.id, types_pb2.ORIGIN_COMPILED)
                console.print(f"\n{engine.id} compiled it in {figure(seconds)}.")
                _run(console, engine, artifact, folder / engine.id)
                joined = _join(client, wasm, engine.id)
                title = f"{CALLERS} callers at once, one compile"
                found[engine.id] = [("compiled", seconds), (title, joined)]
                hits = [
                    _compile(client, wasm, engine.id, types_pb2.ORIGIN_MEMORY)[0]
                    for _ in range(_HITS)
                ]
                found[engine.id].append(("memory", statistics.median(hits)))
            come_to_rest(client)
        with Daemon(state, "--host-store-bytes", "0") as daemon, daemon.client() as client:
            for engine_id, rows in found.items():
                seconds, _ = _compile(client, wasm, engine_id, types_pb2.ORIGIN_REDIS)
                rows.append(("Redis, after a restart", seconds))
                for place, seconds in rows:
                    times = rows[0][1] / seconds
                    table.add_row(engine_id, place, figure(seconds), f"{times:,.0f}")
    console.print()
    console.print(table)
    console.print("\nNext: `make run` to serve, `make bench` to measure.")


def _compile(client: Client, wasm: Path, engine: str, origin: int) -> tuple[float, Artifact]:
    """Return how long a call took, and its artifact. Raises BenchError if it came otherwise."""
    started = time.perf_counter()
    artifact = client.compile(wasm, engine=engine)
    seconds = time.perf_counter() - started
    if artifact.header.origin != origin:
        got, wanted = (types_pb2.Origin.Name(each) for each in (artifact.header.origin, origin))
        raise BenchError(f"an artifact came by {got} where {wanted} was expected")
    return seconds, artifact


def _join(client: Client, wasm: Path, engine: str) -> float:
    """Ask for it from many threads when no tier has it; return when the last had it."""
    client.evict(engine=engine)
    started = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = [pool.submit(client.compile, wasm, engine=engine) for _ in range(CALLERS)]
        origins = Counter(answer.result().header.origin for answer in answers)
    if origins[types_pb2.ORIGIN_COMPILED] != 1:
        raise BenchError(f"{CALLERS} callers made {origins[types_pb2.ORIGIN_COMPILED]} compiles")
    return time.perf_counter() - started


def _run(console: Console, engine: InstalledEngine, artifact: Artifact, file: Path) -> None:
    """Run the artifact in the engine's own interpreter, which has nothing of ours."""
    artifact.save(file)
    runs = ROOT / "tests" / "corpus" / "runs.py"
    command = [str(engine.interpreter), "-I", "-B", str(runs), engine.name, MODULE.name]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--artifact", str(file)],
        capture_output=True,
        text=True,
        timeout=_RUN_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"{engine.id} did not run the artifact: {done.stderr.strip()[-300:]}")
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    seconds = figure(time.perf_counter() - started)
    console.print(f"A process with only that engine ran JavaScript with it in {seconds}:")
    console.print(json.dumps(result), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
