"""The script of a thin install: without the daemon's packages it says which extra has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A Python that finds wasmkiln and nothing else that was installed.
_RUN = """
import sys
sys.path[:0] = {paths!r}
{before}
from wasmkilnd.entry import main
main()
"""


def run(before: str = "") -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "client"), str(ROOT / "server")]
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", _RUN.format(paths=paths, before=before), "--help"],
        capture_output=True,
        text=True,
    )


def test_it_names_the_extra() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stderr == "error: the daemon needs click: pip install 'wasmkiln[server]'\n"


@pytest.mark.parametrize("name", ["wasmkilnd.cli", "wasmkilnd"])
def test_what_is_broken_is_not_taken_for_thin(name: str) -> None:
    broken = f"""
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "wasmkilnd.cli":
            raise ModuleNotFoundError("no such file", name={name!r})
sys.meta_path.insert(0, Broken())
"""
    done = run(broken)
    assert done.returncode == 1
    assert "no such file" in done.stderr


def test_what_a_command_alone_needs_is_named_too() -> None:
    lacking = """
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name == "structlog":
            raise ModuleNotFoundError("no such package", name=name)
sys.meta_path.insert(0, Lacking())
"""
    done = subprocess.run(
        [
            *(sys.executable, "-c", _RUN.format(paths=[], before=lacking)),
            *("engine", "ls", "--state-dir", "/nonexistent"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: the daemon needs structlog: pip install 'wasmkiln[server]'\n"
