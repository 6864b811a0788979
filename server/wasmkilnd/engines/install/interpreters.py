"""Find a Python interpreter for an engine.

A name on PATH proves nothing: a ``python3.10`` there can be a version manager's shim that exits
127. So this module runs each candidate to find out what it is.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wasmkilnd.engines.install.command import EngineInstallError, home
from wasmkilnd.engines.install.vetting import check_interpreter
from wasmkilnd.ownership import NotOurs

_PROBE = (
    "import json, platform, sys; print(json.dumps({"
    "'implementation': platform.python_implementation(),"
    " 'version': list(sys.version_info[:3]), 'executable': sys.executable}))"
)
_PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class PythonRange:
    """The versions of CPython that an engine's package has wheels for, both ends included."""

    oldest: tuple[int, int]
    newest: tuple[int, int] | None = None

    def __str__(self) -> str:
        oldest = ".".join(map(str, self.oldest))
        if self.newest is None:
            return f"CPython {oldest} or newer"
        newest = ".".join(map(str, self.newest))
        return f"CPython {oldest}" if oldest == newest else f"CPython {oldest} to {newest}"

    def __contains__(self, version: tuple[int, int]) -> bool:
        return self.oldest <= version and (self.newest is None or version <= self.newest)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python interpreter that was run, and what it reported."""

    path: Path
    implementation: str
    version: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.implementation} {'.'.join(map(str, self.version))}"

    def fits(self, wanted: PythonRange) -> bool:
        """Return whether an engine that needs ``wanted`` runs in this interpreter."""
        return self.implementation == "CPython" and self.version[:2] in wanted


class NoInterpreterError(EngineInstallError):
    """There is no interpreter that an engine runs in."""

    def __init__(self, name: str, wanted: PythonRange) -> None:
        newest = ".".join(map(str, wanted.newest or wanted.oldest))
        super().__init__(
            f"{name} needs {wanted} and none was found: have one fetched with --fetch-python,"
            f" install one (`pyenv install {newest}`, or your distribution's python{newest}"
            " package) and run this again, or pass --python PATH"
        )
        self.wanted = wanted


def probe(path: str | Path) -> Interpreter | None:
    """Run ``path`` and return what it reports; None if it is not a working Python.

    Raises NotOurs, and runs nothing, where another user could change it or its library.
    """
    check_interpreter(Path(shutil.which(path) or path))
    try:
        output = subprocess.run(
            # -S: without the packages beside its library, which another user may own.
            [str(path), "-I", "-S", "-c", _PROBE],
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout
        report = json.loads(output)
        major, minor, micro = report["version"]
        found = Interpreter(
            Path(report["executable"]), report["implementation"], (major, minor, micro)
        )
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None
    check_interpreter(found.path)  # A version manager may have run another one than ``path``.
    return found


def own_python() -> str:
    """Return the interpreter of this process, outside of its environment."""
    return getattr(sys, "_base_executable", None) or sys.executable


def find(wanted: PythonRange, fetched: Path | None = None) -> Interpreter | None:
    """Return a working interpreter in the range, at best the daemon's own; None if there is none.

    ``fetched`` is a folder with interpreters that were fetched for engines.
    Interpreters that another user could change are skipped. Raises NotOurs if there is no other.
    """
    seen: set[str] = set()
    refused: NotOurs | None = None
    for candidate in _candidates(wanted, fetched):
        if candidate in seen:
            continue
        seen.add(candidate)
        try:
            found = probe(candidate)
        except NotOurs as refusal:
            refused = refused or refusal
            continue
        if found and found.fits(wanted):
            return found
    if refused:
        raise refused
    return None


def choose(name: str, wanted: PythonRange, python: str, fetched: Path) -> Interpreter:
    """Return an interpreter for an engine: ``python``, or one that is found if that is empty.

    Raises NoInterpreterError, EngineInstallError for a ``python`` that does not fit, and NotOurs.
    """
    if python:
        given = probe(python)
        if given is None:
            raise EngineInstallError(f"{python} is not a working Python interpreter")
        if not given.fits(wanted):
            raise EngineInstallError(f"{python} is {given}, and {name} needs {wanted}")
        return given
    found = find(wanted, fetched)
    if found is None:
        raise NoInterpreterError(name, wanted)
    return found


def _candidates(wanted: PythonRange, fetched: Path | None) -> Iterator[str]:
    yield own_python()
    yield sys.executable
    newest_minor = wanted.newest[1] if wanted.newest else sys.version_info.minor + 3
    minors = range(newest_minor, wanted.oldest[1] - 1, -1)
    for minor in minors:
        for folder in os.get_exec_path():
            if found := shutil.which(f"python3.{minor}", path=folder):
                yield found
        for pattern in _install_patterns(fetched):
            yield from sorted(glob.glob(pattern.format(minor=minor)), reverse=True)  # noqa: PTH207
    if found := shutil.which("python3"):
        yield found


def _install_patterns(fetched: Path | None) -> Iterator[str]:
    """Yield where version managers and distributions keep interpreters that are not on PATH."""
    if fetched:
        yield f"{glob.escape(str(fetched))}/cpython-3.{{minor}}.*/bin/python3.{{minor}}"
    at_home = home()
    pyenv_root = os.environ.get("PYENV_ROOT") or str(at_home / ".pyenv")
    uv_root = os.environ.get("UV_PYTHON_INSTALL_DIR") or str(at_home / ".local/share/uv/python")
    yield f"{glob.escape(pyenv_root)}/versions/3.{{minor}}.*/bin/python3.{{minor}}"
    yield f"{glob.escape(uv_root)}/cpython-3.{{minor}}.*/bin/python3.{{minor}}"
    yield f"{glob.escape(str(at_home))}/.asdf/installs/python/3.{{minor}}.*/bin/python3.{{minor}}"
    mise = glob.escape(str(at_home / ".local/share/mise/installs/python"))
    yield f"{mise}/3.{{minor}}.*/bin/python3.{{minor}}"
    for folder in ("/usr/bin", "/usr/local/bin", "/opt/python3.{minor}/bin"):
        yield f"{folder}/python3.{{minor}}"
