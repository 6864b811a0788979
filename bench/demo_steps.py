"""What the demo does, step by step."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

from wasmkiln import Artifact, Client
from wasmkiln.v1 import types_pb2
from wasmkilnd.engines.install import InstalledEngine

from bench.lab import ROOT, BenchError

_RUNS = ROOT / "tests" / "corpus" / "runs.py"
_RUN_TIMEOUT_S = 30
_HITS = 15

_ORIGINS = {"memory": types_pb2.ORIGIN_MEMORY, "redis": types_pb2.ORIGIN_REDIS}


@dataclass(frozen=True)
class Engine:
    """An installed engine, and where its artifact goes."""

    installed: InstalledEngine
    file: Path

    @property
    def id(self) -> str:
        """What a request writes to choose it."""
        return self.installed.id


def compile_cold(client: Client, engine: Engine, wasm: Path) -> tuple[float, Artifact]:
    """Compile what no tier has, and save it; return the seconds, file excluded."""
    started = time.perf_counter()
    artifact = client.compile(wasm, engine=engine.id)
    seconds = time.perf_counter() - started
    artifact.save(engine.file)
    _expect(artifact, types_pb2.ORIGIN_COMPILED)
    return seconds, artifact


def run_artifact(engine: Engine, module: str) -> tuple[float, Any]:
    """Load and call the artifact in the engine's own interpreter, which has nothing of ours.

    Answers the seconds of the whole process, and what the module computed.
    """
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [
                *(str(engine.installed.interpreter), "-I", "-B", str(_RUNS)),
                *(engine.installed.name, module, "--artifact", str(engine.file)),
            ],
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{engine.id} did not run the artifact in {_RUN_TIMEOUT_S} s") from None
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise BenchError(f"{engine.id} did not run the artifact: {words[-1] if words else ''}")
    return time.perf_counter() - started, json.loads(done.stdout)["result"]


def join(client: Client, engine: Engine, wasm: Path, callers: int) -> tuple[float, int]:
    """Ask for it from many threads when no tier has it.

    Answers when the last had it, and how many joined the flight of another.
    """
    client.evict(engine=engine.id)
    barrier = Barrier(callers + 1)

    def one(_: int) -> int:
        barrier.wait()
        return client.compile(wasm, engine=engine.id).header.origin

    with ThreadPoolExecutor(callers) as pool:
        answers = [pool.submit(one, index) for index in range(callers)]
        barrier.wait()
        started = time.perf_counter()
        origins = Counter(answer.result() for answer in answers)
    seconds = time.perf_counter() - started
    if origins[types_pb2.ORIGIN_COMPILED] != 1:
        raise BenchError(f"{callers} callers made {origins[types_pb2.ORIGIN_COMPILED]} compiles")
    return seconds, origins[types_pb2.ORIGIN_JOINED_FLIGHT]


def hit(client: Client, engine: Engine, sha256: str, tier: str) -> float:
    """Return the median seconds of hits in ``tier``; what Redis answers is evicted between."""
    series = []
    for _ in range(_HITS):
        if tier == "redis":
            client.evict(engine=engine.id, tier="memory")
        started = time.perf_counter()
        artifact = client.compile(sha256, engine=engine.id)
        series.append(time.perf_counter() - started)
        _expect(artifact, _ORIGINS[tier])
    return statistics.median(series)


def _expect(artifact: Artifact, origin: int) -> None:
    if artifact.header.origin != origin:
        wanted, got = (
            next(name for name, value in types_pb2.Origin.items() if value == number)
            for number in (origin, artifact.header.origin)
        )
        raise BenchError(f"an artifact came by {got} where {wanted} was expected")
