"""Run something with an engine's own interpreter, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.programs import ROOT, Installed, run

RUNS = ROOT / "tests" / "corpus" / "runs.py"

# What importing the client needs; see pyproject.toml.
CLIENT_NEEDS = ("grpcio", "protobuf", "googleapis-common-protos")


def interpreter(engines: Installed, engine_id: str) -> Path:
    """Return the Python that has the engine."""
    return next(engine.interpreter for engine in engines if engine.id == engine_id)


def run_module(engines: Installed, engine_id: str, name: str, *source: str) -> Any:
    """Return what the corpus' recipe computes; ``source`` is --wasm FILE or --artifact FILE."""
    python = interpreter(engines, engine_id)
    done = run(python, RUNS, engine_id.split("-")[0], name, *source)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["result"]


def run_script(
    engines: Installed, engine_id: str, script: str, *args: object, with_client: bool = False
) -> str:
    """Return what a few lines of Python print; ``with_client``: which import ``wasmkiln``."""
    python = interpreter(engines, engine_id)
    path = {"PYTHONPATH": client_path(python)} if with_client else {}
    done = run(python, "-c", script, *args, **path)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def client_path(python: Path) -> str:
    """Return a PYTHONPATH on which an engine's interpreter, CPython 3.10, finds the client."""
    needs = ROOT / ".work" / "client-3.10"
    if not needs.exists():
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*pip, "--target", str(needs), *CLIENT_NEEDS], check=True)
    return f"{ROOT / 'client'}:{needs}"
