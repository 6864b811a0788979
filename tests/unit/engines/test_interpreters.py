"""A name proves nothing: every candidate is run before it is believed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from wasmkilnd.engines.install import interpreters
from wasmkilnd.engines.install.interpreters import PythonRange

HERE = sys.version_info[:2]


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "echo 'pyenv: python3.10: command not found' >&2; exit 127",
        "echo nonsense",
        "echo '{\"version\": []}'",
        "exit 0",
    ],
)
def test_what_only_looks_like_python_is_passed_over(tmp_path: Path, text: str) -> None:
    assert interpreters.probe(script(tmp_path / "python3", text)) is None


def test_what_is_not_there_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpreters.probe(tmp_path / "nothing") is None
    monkeypatch.setattr(interpreters, "_PROBE_TIMEOUT_S", 0.2)
    assert interpreters.probe(script(tmp_path / "python3", "sleep 5")) is None


def test_a_real_one_says_what_it_is() -> None:
    found = interpreters.probe(sys.executable)
    assert found
    assert found.version[:2] == HERE
    assert found.fits(PythonRange(HERE, HERE))
    assert not found.fits(PythonRange((3, 7), (3, 9)))


def test_find_goes_past_a_broken_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"python3.{HERE[1]}"
    shims, managed = tmp_path / "shims", tmp_path / "pyenv" / "versions" / f"3.{HERE[1]}.9" / "bin"
    shims.mkdir()
    managed.mkdir(parents=True)
    script(shims / name, "exit 127")
    (managed / name).symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(shims))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(sys, "executable", str(shims / name))
    monkeypatch.setattr(sys, "_base_executable", str(shims / name), raising=False)
    found = interpreters.find(PythonRange(HERE, HERE))
    assert found
    assert found.version[:2] == HERE


def test_ranges_read_well() -> None:
    assert str(PythonRange((3, 9), (3, 10))) == "CPython 3.9 to 3.10"
    assert str(PythonRange((3, 9))) == "CPython 3.9 or newer"
    assert (3, 14) in PythonRange((3, 9))
    assert (3, 11) not in PythonRange((3, 9), (3, 10))


def test_find_needs_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user is often a number without an entry in passwd."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert interpreters.find(PythonRange((3, 0), (3, 1))) is None
