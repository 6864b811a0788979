"""Install: engines on disk, each in an environment of its own.

``<state_dir>/engines/<name>-<version>/`` is a virtual environment with one engine.
``engine.json`` in it holds name, version and interpreter; the folder is built beside its final
place and renamed, so what is there is complete. A folder without a readable ``engine.json`` is
damaged; installing the engine again replaces it.

- uv installs the packages, wheels alone. Those of tested versions are pinned by SHA-256 in
  ``pins/``, for all platforms (``make lock``): a file with another digest is not installed. Other
  versions are installed with a warning, or with the digests that ``--sha256`` names.
- An engine gets a Python of this machine, at best the daemon's own; a candidate is run before it
  is believed, since a ``python3.10`` on PATH can be a version manager's shim that exits 127. Where
  none fits, uv fetches a CPython into ``<state_dir>/pythons/``: builds of
  python-build-standalone, whose SHA-256 uv knows.
- No interpreter or engine is run whose files another user could change: the daemon would run that
  user's code.

Raises EngineInstallError with one sentence that says why and what to do, and NotOurs
(``ownership``) where another user could put an engine there.
"""

from __future__ import annotations

import configparser
import fcntl
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from packaging.version import Version

from wasmkilnd.files.ownership import NotOurs, check_path, check_tree, make_folder
from wasmkilnd.model import SHA256_HEX

PINS = Path(__file__).parent / "pins"
# What is called with each step of an installation.
Report: TypeAlias = Callable[[str], None]

_MARKER = "engine.json"
_BUILDING = ".building-"
_SPEC = re.compile(r"(?P<name>[a-z]+)(?:==(?P<version>[0-9][0-9A-Za-z.+!-]*))?")
_VERSION_PROBE = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
_PYTHON_PROBE = (
    "import platform, sys; print(sys.executable);"
    " print(platform.python_implementation(), platform.python_version())"
)
_PROBE_TIMEOUT_S = 10.0
_TIMEOUT_S = 900
# Plain messages, and none of uv's files, which may be another project's or user's.
_UV = dict.fromkeys(
    ("UV_NO_CONFIG", "UV_NO_CACHE", "UV_NO_PROGRESS", "UV_SYSTEM_CERTS", "NO_COLOR"), "1"
)
# What pip calls what uv needs to know of the package index.
_PIP = {
    "index-url": "UV_INDEX_URL",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "no-index": "no-index",  # for which uv has no variable
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "retries": "UV_HTTP_RETRIES",
    "timeout": "UV_HTTP_TIMEOUT",
}
_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
_HOME = re.compile(r"^home *= *(.+)$", re.MULTILINE)
# Workers import nothing from these: an engine's environment has packages of its own.
_PACKAGES = frozenset({"site-packages", "dist-packages"})


class EngineInstallError(Exception):
    """An engine cannot be installed or removed; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """The packages of an engine and the interpreters that they run in."""

    # What uv is asked for, at the engine's version. The package of the engine's name comes first.
    packages: tuple[str, ...]
    # The versions of CPython, in words.
    needs: str
    # The same as numbers: the 10 of 3.10.
    minors: range
    # The version to install when none is named: the one that this release was tested with.
    default_version: str

    def at(self, version: str) -> Sequence[str]:
        """Return the requirements of one version."""
        return [each.format(version) for each in self.packages]


# In the order in which engines are listed; the first that is served is the default, where a state
# directory has none yet.
KINDS = {
    "wasmtime": EngineKind(("wasmtime=={}",), "CPython 3.9 or newer", range(9, 100), "50.0.1"),
    # 1.1.0, of January 2022, is its last release on PyPI and has wheels for CPython 3.7 to 3.10
    # only; the workers' own code needs 3.9.
    "wasmer": EngineKind(
        (
            "wasmer=={}",
            "wasmer-compiler-cranelift=={}",
            "wasmer-compiler-singlepass=={} ; platform_machine == 'x86_64'",
        ),
        "CPython 3.9 to 3.10",
        range(9, 11),
        "1.1.0",
    ),
}


@dataclass(frozen=True, slots=True)
class InstalledEngine:
    """One engine version, ready to be served."""

    name: str
    version: str
    # For example ``CPython 3.10.13``.
    python: str
    path: Path

    @property
    def id(self) -> str:
        """The id by which a request names the engine."""
        return f"{self.name}-{self.version}"

    @property
    def interpreter(self) -> Path:
        """The Python in the engine's environment."""
        return self.path / "bin" / "python"

    def is_there(self) -> bool:
        """Return whether it is still in its place."""
        return (self.path / _MARKER).exists()

    def check(self) -> None:
        """Raise NotOurs if another user can change what the engine's workers run. May block."""
        check_tree(self.path)
        text = ""
        with suppress(OSError):
            text = (self.path / "pyvenv.cfg").read_text(errors="replace")
        # The environment's Python takes its library from there, wherever the link to it leads.
        homes = [Path(home.strip()).parent for home in _HOME.findall(text)]
        _check_interpreter(self.interpreter, homes)


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
        found = [engine for marker in self._root.glob(f"*/{_MARKER}") if (engine := _read(marker))]
        found.sort(key=lambda engine: Version(engine.version), reverse=True)
        return sorted(found, key=lambda engine: (*KINDS, engine.name).index(engine.name))

    def ids(self) -> list[str]:
        """Return the ids of all engines, damaged ones too."""
        return [*(each.id for each in self.installed()), *(each.name for each in self.damaged())]

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
        report: Report = lambda _: None,
        sha256: Sequence[str] = (),
    ) -> InstalledEngine:
        """Install ``NAME`` or ``NAME==VERSION``; return the engine. Idempotent.

        ``python`` is a path to an interpreter, or empty to look for one, and else have uv fetch
        one. ``sha256`` has the digests of the wheels to accept; without it those of a tested
        version are pinned. Call ``report`` with each step. Raises EngineInstallError.
        """
        name, version = parse_spec(spec)
        if wrong := [digest for digest in sha256 if not SHA256_HEX.fullmatch(digest)]:
            raise EngineInstallError(f"{wrong[0]!r} is not a SHA-256: 64 digits, 0 to 9 and a to f")
        version = version or KINDS[name].default_version
        pins = PINS / f"{name}-{version}.txt"
        with self._lock():
            for engine in self.installed():
                if (engine.name, engine.version) == (name, version):
                    return engine
            found = self._interpreter(name, python, report)
            report(f"{spec}: using {found.name} at {found.path}")
            with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=self._root) as folder:
                if sha256:
                    hashes = "".join(f" --hash=sha256:{digest}" for digest in sha256)
                    pins = Path(folder, "pins.txt")
                    wanted = KINDS[name].at(version)
                    pins.write_text("".join(f"{each}{hashes}\n" for each in wanted))
                elif not pins.exists():
                    report(
                        f"warning: {name}=={version} is not pinned: whatever the package index"
                        " serves under this name is installed and run. Give --sha256 DIGEST of a"
                        f" wheel that you trust, or install {' or '.join(pinned_versions())}"
                    )
                return self._build(Path(folder, "engine"), name, version, found, pins, report)

    def _build(
        self, folder: Path, name: str, version: str, found: Interpreter, pins: Path, report: Report
    ) -> InstalledEngine:
        # Not by uv, which runs an interpreter with the packages beside its library.
        _run([str(found.path), "-I", "-S", "-m", "venv", "--without-pip", str(folder)])
        python, marker = folder / "bin" / "python", folder / _MARKER
        _install_wheels(python, KINDS[name].at(version), pins, report)
        version = _run([str(python), "-I", "-c", _VERSION_PROBE, name]).strip()
        engine = InstalledEngine(name, version, found.name, self._root / f"{name}-{version}")
        marker.write_text(json.dumps({"name": name, "version": version, "python": found.name}))
        # Whatever the umask is, nobody else may write to it; uv lets everybody write to its lock.
        marker.chmod(0o644)
        folder.chmod(0o755)
        (folder / ".lock").unlink(missing_ok=True)
        if not _read(engine.path / _MARKER):
            if engine.path.is_symlink():
                engine.path.unlink()
            shutil.rmtree(engine.path, ignore_errors=True)
            folder.rename(engine.path)
        return engine

    def _interpreter(self, name: str, python: str, report: Report) -> Interpreter:
        kind = KINDS[name]
        if not python:
            return find_python(kind.minors, self._pythons) or self._fetch(kind, report)
        given = probe(python)
        if given is None:
            raise EngineInstallError(f"{python} is not a working Python interpreter")
        if not given.fits(kind.minors):
            raise EngineInstallError(f"{python} is {given.name}, and {name} needs {kind.needs}")
        return given

    def _fetch(self, kind: EngineKind, report: Report) -> Interpreter:
        version = f"3.{min(kind.minors[-1], sys.version_info.minor)}"
        where = os.environ.get("UV_PYTHON_INSTALL_MIRROR", "where uv finds it")
        report(f"this machine has no {kind.needs}: fetching CPython {version} from {where}")
        try:
            make_folder(self._pythons)
            folder = {"UV_PYTHON_INSTALL_DIR": str(self._pythons)}
            _uv(["python", "install", "--no-bin", f"cpython@{version}"], folder)
        except (EngineInstallError, OSError) as failure:
            raise EngineInstallError(
                f"cannot fetch CPython {version} from {where}: {failure}. Name a mirror that this"
                " machine reaches with UV_PYTHON_INSTALL_MIRROR, or install it by hand"
                f" (`pyenv install {version}`) and pass --python PATH"
            ) from None
        found = find_python(kind.minors, self._pythons)
        if found is None:
            raise EngineInstallError(f"uv fetched CPython {version}, and it does not run here")
        return found

    def remove(self, engine: InstalledEngine) -> None:
        """Remove an engine at once: no daemon finds half of it."""
        with self._lock():
            if engine.path.is_symlink():
                engine.path.unlink()
            elif engine.is_there():
                aside = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self._root))
                engine.path.rename(aside / engine.id)
                shutil.rmtree(aside)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Let no other process install or remove meanwhile; say which file cannot be used."""
        try:
            make_folder(self._root)
            with (self._root / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for left_over in self._root.glob(f"{_BUILDING}*"):
                    # Of an installation that was killed.
                    shutil.rmtree(left_over, ignore_errors=True)
                yield
        except OSError as failure:
            raise EngineInstallError(
                f"cannot use {failure.filename or self._root}: {failure.strerror};"
                " choose another place with --state-dir or WASMKILN_STATE_DIR"
            ) from None


def parse_spec(spec: str) -> tuple[str, str]:
    """Split ``NAME==VERSION``; the version may be empty. Raises EngineInstallError."""
    found = _SPEC.fullmatch(spec)
    if not found or found["name"] not in KINDS:
        raise EngineInstallError(
            f"{spec!r} is not an engine: write {' or '.join(KINDS)}, or one with a version,"
            " such as wasmtime==50.0.1"
        )
    return found["name"], found["version"] or ""


def pinned_versions() -> list[str]:
    """List ``name==version`` of what is pinned."""
    return sorted(file.stem.replace("-", "==", 1) for file in PINS.glob("*.txt"))


def _read(marker: Path) -> InstalledEngine | None:
    """Return the engine that a marker describes; None for a damaged one."""
    if marker.parent.name.startswith("."):
        return None
    try:
        said = json.loads(marker.read_text())
        Version(said["version"])
        return InstalledEngine(said["name"], said["version"], said["python"], marker.parent)
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Interpreter(NamedTuple):
    """A Python interpreter that was run, and what it reported."""

    path: Path
    # For example ``CPython 3.10.13``.
    name: str

    def fits(self, minors: range) -> bool:
        """Return whether it is a CPython 3 of one of these minor versions."""
        return self.name.startswith(tuple(f"CPython 3.{minor}." for minor in minors))


def probe(python: str | Path) -> Interpreter | None:
    """Run ``python`` and return what it reports; None if it is not a working Python.

    Raises NotOurs, and runs nothing, where another user could change it or its library.
    """
    _check_interpreter(Path(shutil.which(python) or python))
    # -S: without the packages beside its library, which another user may own.
    command = [str(python), "-I", "-S", "-c", _PYTHON_PROBE]
    try:
        path, name = _run(command, timeout_s=_PROBE_TIMEOUT_S).splitlines()
    except (EngineInstallError, ValueError):
        return None
    _check_interpreter(Path(path))  # A version manager may have run another one than ``python``.
    return Interpreter(Path(path), name)


def find_python(minors: range, fetched: Path) -> Interpreter | None:
    """Return a working CPython 3 of one of these minor versions, at best the daemon's own.

    ``fetched`` is a folder with interpreters that were fetched for engines. Interpreters that
    another user could change are passed over.
    """
    for candidate in dict.fromkeys(_candidates(minors, fetched)):
        with suppress(NotOurs):
            found = probe(candidate)
            if found and found.fits(minors):
                return found
    return None


def _candidates(minors: range, fetched: Path) -> Iterator[str]:
    yield getattr(sys, "_base_executable", None) or sys.executable
    pyenv = glob.escape(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"))  # noqa: PTH111 - raises nothing
    for minor in reversed(minors):
        for folder in (
            *map(glob.escape, os.get_exec_path()),
            f"{glob.escape(str(fetched))}/cpython-3.{minor}.*/bin",
            f"{pyenv}/versions/3.{minor}.*/bin",
            f"/opt/python3.{minor}/bin",
        ):
            yield from sorted(glob.glob(f"{folder}/python3.{minor}"))  # noqa: PTH207


def _check_interpreter(executable: Path, prefixes: Sequence[Path] = ()) -> None:
    """Raise NotOurs if another user can change a Python or its libraries. May block."""
    check_path(executable)
    itself = executable.resolve()
    versions = itself.name if re.fullmatch(r"python3\.\d+", itself.name) else "python3.*"
    for prefix in (itself.parent.parent, *prefixes):
        for folder in (prefix / "lib", prefix / "lib64"):
            check_path(folder)
            for library in folder.glob(versions):
                check_tree(library, leave_out=_PACKAGES)
            for loaded in (*folder.glob("python3*.zip"), *folder.glob("libpython3*")):
                check_path(loaded)


def _install_wheels(python: Path, packages: Sequence[str], pins: Path, report: Report) -> None:
    """Install ``package==version``s into the environment of ``python``.

    Where the file ``pins`` exists, it lists the SHA-256 of the files that are good.
    """
    report(f"installing {packages[0]}")
    hashes = ["--require-hashes", "--constraints", str(pins)] if pins.exists() else []
    words = ["pip", "install", "--python", str(python), "--only-binary", ":all:"]
    try:
        _uv([*words, *hashes, *packages], {"UV_LINK_MODE": "copy"})
    except EngineInstallError as failure:
        if "Hash mismatch" in str(failure):
            whose = "this release" if pins.parent == PINS else "--sha256"
            raise EngineInstallError(
                f"cannot install {packages[0]}: the package index served a file with another"
                f" SHA-256 than those that {whose} allows; find out who changed it"
            ) from None
        raise


def _uv(words: Sequence[str], environ: dict[str, str]) -> None:
    from uv import find_uv_bin

    index = _pip_settings()
    if index.pop("no-index", "").lower() in ("1", "true", "yes", "on") and words[0] == "pip":
        words = [*words, "--no-index"]
    environ = {**index, **os.environ, **_UV, **environ}
    environ.pop("UV_CONFIG_FILE", None)
    if words[0] == "pip" and "--require-hashes" not in words:
        _refuse_http(environ)
    _run([find_uv_bin(), *words], environ)


def _refuse_http(environ: Mapping[str, str]) -> None:
    """Refuse an index at which anybody on the way could serve other code, as pip does."""
    trusted = [host.partition(":")[0] for host in environ.get("UV_INSECURE_HOST", "").split()]
    asked = " ".join(environ.get(variable, "") for variable in _INDEXES)
    for host in re.findall(r"http://(?:[^/@\s]*@)?(\[[^]]*\]|[^/:,\s]+)", asked):
        if host not in ("localhost", "127.0.0.1", "[::1]", *trusted):
            raise EngineInstallError(
                f"cannot install what is not pinned from {host} over plain http: anybody on the"
                " way could serve other code. Use https, pin the wheel with --sha256 DIGEST, or"
                " name the host in PIP_TRUSTED_HOST"
            )


def _pip_settings() -> dict[str, str]:
    """Return what pip's variables and files say of the package index, in uv's variables."""
    files = configparser.RawConfigParser(strict=False)
    named = os.environ.get("PIP_CONFIG_FILE", "")
    if named != os.devnull:
        config = os.environ.get("XDG_CONFIG_HOME", "") or "~/.config"
        homes = ("/etc/xdg/pip", "/etc", "~/.pip", f"{config}/pip", sys.prefix)
        with suppress(configparser.Error, ValueError):
            files.read([os.path.expanduser(f"{home}/pip.conf") for home in homes] + [named])  # noqa: PTH111 - raises nothing
    said: dict[str, str] = {}
    for name in ("global", "install"):
        said |= dict(files[name]) if name in files else {}
    said |= {name[4:]: text for name, text in os.environ.items() if name.startswith("PIP_")}
    said = {key.lower().replace("_", "-"): " ".join(text.split()) for key, text in said.items()}
    found = {_PIP[key]: text for key, text in said.items() if key in _PIP and text}
    if "UV_FIND_LINKS" in found:
        found["UV_FIND_LINKS"] = found["UV_FIND_LINKS"].replace(" ", ",")
    return found


def _run(
    command: Sequence[str], environ: dict[str, str] | None = None, timeout_s: float = _TIMEOUT_S
) -> str:
    """Run a command; return its output. Raises EngineInstallError with what it says of an error."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            umask=0o022,  # Whatever the caller's is, no other user may write to an engine.
            env={k: v for k, v in (environ or os.environ).items() if not k.startswith("PYTHON")},
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise EngineInstallError(f"cannot run `{' '.join(command)}`: {failure}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [""]
        # uv says below an error what caused it, each in a line of its own.
        told = [line[7:] for line in lines if line.startswith(("error: ", "cause: "))] or lines[-1:]
        raise EngineInstallError(
            f"`{' '.join(command)}` failed with exit code {done.returncode}: {': '.join(told)}"
        )
    return done.stdout
