"""Install, list and remove the engines under a state directory.

Each is a virtual environment in ``<state>/engines/<name>-<version>/``. It is built beside its
place, with ``engine.json`` written last, and then renamed: what is there is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from packaging.version import InvalidVersion, Version

from wasmkilnd.engines.install.command import EngineInstallError, run
from wasmkilnd.engines.install.interpreters import Interpreter, PythonRange, choose
from wasmkilnd.engines.install.wheels import (
    ForeignWheelError,
    Wheels,
    pinned_versions,
    wheels_of,
)
from wasmkilnd.ownership import NotOurs, check_path, make_folder

_MARKER = "engine.json"
_BUILDING = ".building-"
_SPEC = re.compile(r"(?P<name>[a-z]+)(?:==(?P<version>[0-9][0-9A-Za-z.+!-]*))?")
_VERSION_PROBE = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class EngineKind:
    """The packages of an engine and the interpreters that they run in."""

    packages: tuple[str, ...]
    """Installed at the same version; the version of the first is the engine's."""
    python: PythonRange
    default_version: str
    """The version to install when none is named: the one that this release was tested with."""
    optional: tuple[str, ...] = ()
    """Installed at the same version too, where there are wheels; without them the engine works."""


# In the order in which engines are listed; the first that is served is the default.
# wasmer 1.1.0, of January 2022, is its last release on PyPI and has wheels for CPython 3.7
# to 3.10 only; the workers' own code needs 3.9.
KINDS = {
    "wasmer": EngineKind(
        ("wasmer", "wasmer-compiler-cranelift"),
        PythonRange((3, 9), (3, 10)),
        "1.1.0",
        ("wasmer-compiler-singlepass",),  # for x86-64 only
    ),
    "wasmtime": EngineKind(("wasmtime",), PythonRange((3, 9)), "50.0.1"),
}


@dataclass(frozen=True, slots=True)
class InstalledEngine:
    """One engine version, ready to be served."""

    name: str
    version: str
    python: str
    """For example ``CPython 3.10.13``."""
    path: Path

    @property
    def id(self) -> str:
        """The id by which a request names the engine."""
        return f"{self.name}-{self.version}"

    @property
    def marker(self) -> Path:
        """The file that says which engine this is."""
        return self.path / _MARKER

    @property
    def interpreter(self) -> Path:
        """The Python in the engine's environment."""
        return self.path / "bin" / "python"

    def is_there(self) -> bool:
        """Return whether it is still in its place."""
        return self.marker.exists()


class EngineStore:
    """Installs, lists and removes engines. Safe for several processes at once.

    Every method raises NotOurs where another user could add or remove an engine.
    """

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir / "engines"
        self._pythons = state_dir / "pythons"

    def installed(self) -> list[InstalledEngine]:
        """List complete engines in the order of KINDS, newer versions before older ones."""
        check_path(self._root)
        found = (_read(marker) for marker in self._root.glob(f"*/{_MARKER}"))
        return newest_first([engine for engine in found if engine])

    def damaged(self) -> list[Path]:
        """List folders that should hold an engine and do not; to repair one, install it again."""
        check_path(self._root)
        return sorted(
            folder
            for folder in self._root.glob("[!.]*-*")
            # A folder that this user cannot read is damaged too, and no reason to fail.
            if (os.path.isdir(folder) or folder.is_symlink())  # noqa: PTH112 - is_dir raises
            and not _read(folder / _MARKER)
        )

    def install(
        self,
        spec: str,
        python: str = "",
        report: Callable[[str], None] = lambda _: None,
        sha256: Sequence[str] = (),
    ) -> InstalledEngine:
        """Install ``NAME`` or ``NAME==VERSION``; return the engine. Idempotent.

        ``python`` is a path to an interpreter, or empty to look for one. ``sha256`` has the
        digests of the wheels to accept; without it those of a tested version are pinned.
        Call ``report`` with each step. Raises EngineInstallError.
        """
        name, version = parse_spec(spec)
        kind = KINDS[name]
        version = version or kind.default_version
        wheels = wheels_of(name, version, (*kind.packages, *kind.optional), sha256)
        with self._lock():
            for left_over in self._root.glob(f"{_BUILDING}*"):
                shutil.rmtree(left_over, ignore_errors=True)  # of an installation that was killed
            already = [e for e in self.installed() if e.name == name and e.version == version]
            if already:
                return already[0]
            try:
                interpreter = choose(name, kind.python, python, self._pythons)
            except NotOurs as refusal:
                raise EngineInstallError(f"{name} needs {kind.python}, and {refusal}") from None
            report(f"{spec}: using {interpreter} at {interpreter.path}")
            if not wheels.hashes:
                report(
                    f"warning: {name}=={version} is not pinned: whatever the package index serves"
                    " under this name is installed and run. Give --sha256 DIGEST of a wheel that"
                    f" you trust, or install {' or '.join(pinned_versions())}"
                )
            building = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self._root))
            try:
                return self._build(building, name, version, wheels, interpreter, report)
            finally:
                shutil.rmtree(building, ignore_errors=True)

    def _build(
        self,
        building: Path,
        name: str,
        version: str,
        wheels: Wheels,
        interpreter: Interpreter,
        report: Callable[[str], None],
    ) -> InstalledEngine:
        kind = KINDS[name]
        run([str(interpreter.path), "-I", "-S", "-m", "venv", "--without-pip", str(building)])
        python = building / "bin" / "python"
        wheels.install(python, [f"{package}=={version}" for package in kind.packages], report)
        try:
            wheels.install(python, [f"{package}=={version}" for package in kind.optional], report)
        except ForeignWheelError:
            raise
        except EngineInstallError as failure:
            report(f"going on without: {failure}")
        actual = run([str(python), "-I", "-c", _VERSION_PROBE, kind.packages[0]]).strip()
        final = self._root / f"{name}-{actual}"
        _write_marker(building, name, actual, str(interpreter))
        building.chmod(0o755)
        if not _read(final / _MARKER):
            shutil.rmtree(final, ignore_errors=True)
            building.rename(final)
        return InstalledEngine(name, actual, str(interpreter), final)

    def remove(self, engine_id: str) -> None:
        """Remove an engine. Raises EngineInstallError when it is not installed."""
        with self._lock():
            for engine in self.installed():
                if engine_id in (engine.id, f"{engine.name}=={engine.version}"):
                    _vanish(engine.path)
                    return
        installed = ", ".join(engine.id for engine in self.installed()) or "none"
        raise EngineInstallError(f"{engine_id} is not installed; installed are: {installed}")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            make_folder(self._root)
            lock = (self._root / ".lock").open("w")
        except OSError as failure:
            raise EngineInstallError(
                f"cannot use {self._root}: {failure.strerror};"
                " choose another place with --state-dir or WASMKILN_STATE_DIR"
            ) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _vanish(folder: Path) -> None:
    """Remove a folder at once: no daemon finds half an engine."""
    if folder.is_symlink():
        folder.unlink()
        return
    aside = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=folder.parent))
    folder.rename(aside / folder.name)
    shutil.rmtree(aside)


def parse_spec(spec: str) -> tuple[str, str]:
    """Split ``NAME==VERSION``; the version may be empty. Raises EngineInstallError."""
    found = _SPEC.fullmatch(spec)
    if not found or found["name"] not in KINDS:
        raise EngineInstallError(
            f"{spec!r} is not an engine: write {' or '.join(KINDS)}, or one with a version,"
            " such as wasmtime==50.0.1"
        )
    version = found["version"] or ""
    try:
        Version(version or "0")
    except InvalidVersion:
        raise EngineInstallError(f"{version!r} is not a version") from None
    return found["name"], version


class _Versioned(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...


V = TypeVar("V", bound=_Versioned)


def newest_first(engines: Iterable[V]) -> list[V]:
    """Sort in the order of KINDS, and by version from newest to oldest within a name."""
    place = {name: number for number, name in enumerate(KINDS)}
    by_version = sorted(engines, key=lambda engine: Version(engine.version), reverse=True)
    return sorted(by_version, key=lambda engine: (place.get(engine.name, len(KINDS)), engine.name))


def _write_marker(folder: Path, name: str, version: str, python: str) -> None:
    marker = folder / _MARKER
    marker.write_text(json.dumps({"name": name, "version": version, "python": python}))
    marker.chmod(0o644)  # Whatever the umask is, no other user may write to an engine.


def _read(marker: Path) -> InstalledEngine | None:
    """Return the engine that a marker describes; None for a damaged one."""
    if marker.parent.name.startswith("."):
        return None
    try:
        engine = json.loads(marker.read_text())
        Version(engine["version"])
        return InstalledEngine(engine["name"], engine["version"], engine["python"], marker.parent)
    except (OSError, ValueError, KeyError, TypeError):
        return None
