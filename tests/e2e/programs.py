"""The programs under test: by their paths, so that a release can stand in for this tree.

The end-to-end tests import no module of the daemon. They start ``wasmkilnd`` and ``wasmkiln`` as
users do: those of this environment, or those that ``TEST_WASMKILND`` and ``TEST_WASMKILN`` name.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
"""Where the programs of this environment are, those of other packages too."""

WASMKILND = os.environ.get("TEST_WASMKILND", str(PROGRAMS / "wasmkilnd"))
WASMKILN = os.environ.get("TEST_WASMKILN", str(PROGRAMS / "wasmkiln"))

ENGINE_SPECS = ("wasmer==1.1.0", "wasmtime==50.0.1", "wasmtime==49.0.0")


@dataclass(frozen=True)
class Engine:
    """An installed engine, as ``wasmkilnd engine ls`` tells of it."""

    id: str
    name: str
    version: str
    path: Path

    @property
    def interpreter(self) -> Path:
        """The Python that has the engine."""
        return self.path / "bin" / "python"


Installed: TypeAlias = tuple[Engine, ...]


def search_path() -> str:
    """Return a PATH with the programs under test first, and then those of this environment."""
    return os.pathsep.join([_links().name, str(PROGRAMS), os.environ["PATH"]])


@cache
def _links() -> tempfile.TemporaryDirectory[str]:
    """Make a folder with the programs under test alone; their own has a Python beside them."""
    folder = tempfile.TemporaryDirectory(prefix="wasmkiln-programs-")
    for name, program in (("wasmkilnd", WASMKILND), ("wasmkiln", WASMKILN)):
        Path(folder.name, name).symlink_to(Path(program).absolute())
    return folder


def inside(module: str, *words: str) -> tuple[str, ...]:
    """Return the command of a daemon within ``module`` of the tests, which runs it by its path.

    The module runs in the daemon's own Python, from this repository, and may import nothing else.
    """
    return (_python(), "-m", module, *words)


def _python() -> str:
    return Path(WASMKILND).read_text().splitlines()[0].removeprefix("#!")


@cache
def why_not_as(user: int) -> str:
    """Return why another user cannot run the daemon; empty if that user can.

    Where its Python lies in a home directory, another one may be taken, and fail much later.
    """
    become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
    which = (_python(), "-c", "import sys; print(sys.version, sys.base_prefix)")
    other = run(*become, *which)
    if other.stdout != run(*which).stdout:
        return f"its Python is out of reach: {other.stderr[-200:] or other.stdout}"
    return run(*become, WASMKILND, "--version").stderr[-200:]


def become_wasmkilnd() -> None:
    """Run the program under test in this process, with the arguments that are left."""
    sys.argv[0] = WASMKILND
    runpy.run_path(WASMKILND, run_name="__main__")


def test_state_dir() -> Path:
    """Where the engines that tests use are installed, once for all runs."""
    return Path(os.environ.get("WASMKILN_TEST_STATE", ROOT / ".work" / "state"))


def engines_of(state_dir: Path) -> Installed:
    """Return the engines that are installed under a state directory."""
    found = json.loads(wasmkilnd("engine", "ls", "--json", "--state-dir", str(state_dir)))
    return tuple(Engine(e["id"], e["name"], e["version"], Path(e["path"])) for e in found)


@cache
def installed_engines() -> Installed:
    """Install what tests need, unless it is there; return it."""
    state = test_state_dir()
    if not {spec.replace("==", "-") for spec in ENGINE_SPECS} <= {e.id for e in engines_of(state)}:
        wasmkilnd("engine", "install", *ENGINE_SPECS, "--state-dir", str(state))
    return engines_of(state)


def run(*words: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with no other settings of the daemon or client than these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WASMKILN_")}
    return subprocess.run(
        [str(word) for word in words],
        env={**kept, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def wasmkilnd(*words: str) -> str:
    """Run a command of the daemon's that has to succeed; return its standard output."""
    done = run(WASMKILND, *words)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
