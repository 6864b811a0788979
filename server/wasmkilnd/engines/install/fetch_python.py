"""Fetch a CPython for an engine that needs an older one than this machine has.

uv fetches it: builds of python-build-standalone, whose SHA-256 uv knows. uv itself comes from the
package index as a wheel that is pinned by SHA-256, into a folder that is removed after. The
interpreter stays in ``<state_dir>/pythons/``, where ``interpreters`` finds it again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from wasmkilnd.engines.install.command import EngineInstallError, run
from wasmkilnd.engines.install.interpreters import Interpreter, PythonRange, find, own_python
from wasmkilnd.engines.install.wheels import PINS, Wheels, pins_in
from wasmkilnd.ownership import make_folder

UV_PINS = PINS.with_name("uv.txt")


def fetch_python(
    state_dir: Path, wanted: PythonRange, mirror: str, report: Callable[[str], None]
) -> Interpreter:
    """Fetch the newest CPython in the range. Idempotent. Raises EngineInstallError and NotOurs.

    ``mirror`` is where the builds are, in the layout of python-build-standalone's releases; empty
    for where uv looks by itself.
    """
    version = ".".join(map(str, wanted.newest or wanted.oldest))
    pythons = state_dir / "pythons"
    try:
        make_folder(pythons)
        with tempfile.TemporaryDirectory(prefix=".uv-", dir=state_dir) as folder:
            uv = _install_uv(Path(folder), report)
            report(f"fetching CPython {version} from {mirror or 'where uv finds it'}")
            _fetch(uv, version, pythons, mirror, Path(folder) / "cache")
    except OSError as failure:
        raise EngineInstallError(
            f"cannot use {failure.filename or state_dir}: {failure.strerror}"
        ) from None
    found = find(wanted, pythons)
    if found is None:
        raise EngineInstallError(f"uv fetched CPython {version}, and it does not run here")
    return found


def _install_uv(folder: Path, report: Callable[[str], None]) -> Path:
    pinned = pins_in(UV_PINS)
    environment = folder / "uv"
    run([own_python(), "-I", "-S", "-m", "venv", "--without-pip", str(environment)])
    Wheels(pinned, "this release").install(environment / "bin" / "python", list(pinned), report)
    return environment / "bin" / "uv"


def _fetch(uv: Path, version: str, pythons: Path, mirror: str, cache: Path) -> None:
    own = {"UV_PYTHON_INSTALL_DIR": str(pythons), "UV_CACHE_DIR": str(cache)}
    if mirror:
        own["UV_PYTHON_INSTALL_MIRROR"] = mirror
    options = ("--no-bin", "--no-config", "--no-progress", "--color", "never")
    try:
        # The range may end in the middle of a line of releases: so CPython, and this version.
        run([str(uv), "python", "install", *options, f"cpython@{version}"], environ=own)
    except EngineInstallError as failure:
        words = str(failure).rpartition(": ")[2]
        where = mirror or os.environ.get("UV_PYTHON_INSTALL_MIRROR", "")
        raise EngineInstallError(
            f"cannot fetch CPython {version}{f' from {where}' if where else ''}: {words}. Name a"
            " mirror that this machine reaches with python_mirror, or install CPython"
            f" {version} by hand and pass --python PATH"
        ) from None
