"""Installing engines: what can go wrong is told in one sentence, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from wasmkilnd.engines.install import interpreters, store, wheels
from wasmkilnd.engines.install.command import EngineInstallError
from wasmkilnd.engines.install.store import EngineStore, parse_spec


def pretend(root: Path, name: str, version: str) -> None:
    folder = root / "engines" / f"{name}-{version}"
    folder.mkdir(parents=True)
    (folder / "engine.json").write_text(
        json.dumps({"name": name, "version": version, "python": "CPython 3.10.1"})
    )


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [("wasmer", ("wasmer", "")), ("wasmtime==50.0.1", ("wasmtime", "50.0.1"))],
)
def test_specs(spec: str, parsed: tuple[str, str]) -> None:
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize(
    "spec", ["", "v8", "wasmtime==", "wasmtime>=1", "wasmtime==1; rm -rf /", "--index-url=x"]
)
def test_what_is_no_spec(spec: str) -> None:
    with pytest.raises(EngineInstallError):
        parse_spec(spec)


def test_newer_versions_come_first(tmp_path: Path) -> None:
    for name, version in (("wasmtime", "9.0.0"), ("wasmtime", "50.0.1"), ("wasmer", "1.1.0")):
        pretend(tmp_path, name, version)
    # Neither of these is an engine that is complete.
    (tmp_path / "engines" / "wasmtime-51.0.0").mkdir()
    pretend(tmp_path, ".building", "x")
    found = [engine.id for engine in EngineStore(tmp_path).installed()]
    assert found == ["wasmer-1.1.0", "wasmtime-50.0.1", "wasmtime-9.0.0"]


def test_remove(tmp_path: Path) -> None:
    pretend(tmp_path, "wasmtime", "9.0.0")
    store = EngineStore(tmp_path)
    with pytest.raises(EngineInstallError, match=r"installed are: wasmtime-9\.0\.0"):
        store.remove("wasmtime-8.0.0")
    store.remove("wasmtime-9.0.0")
    assert store.installed() == []


def test_installing_what_is_there_does_nothing(tmp_path: Path) -> None:
    pretend(tmp_path, "wasmtime", "50.0.1")
    steps: list[str] = []
    assert (
        EngineStore(tmp_path).install("wasmtime==50.0.1", report=steps.append).version == "50.0.1"
    )
    assert steps == []


def test_no_interpreter_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "find", lambda *_: None)
    with pytest.raises(EngineInstallError, match=r"CPython 3\.9 to 3\.10.*--fetch-python"):
        EngineStore(tmp_path).install("wasmer")


def test_a_wrong_interpreter_is_refused(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    with pytest.raises(EngineInstallError, match="not a working Python"):
        store.install("wasmer", python=str(tmp_path / "nothing"))
    with pytest.raises(EngineInstallError, match=r"wasmer needs CPython 3\.9 to 3\.10"):
        store.install("wasmer", python=sys.executable)


def test_a_version_that_does_not_exist_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(EngineInstallError, match=r"pip.* failed"):
        EngineStore(tmp_path).install("wasmtime==0.0.0")
    left = [path.name for path in (tmp_path / "engines").iterdir()]
    assert left == [".lock"]


@pytest.mark.parametrize("marker", ["", "garbage", "{}", "[]", "null"])
def test_a_damaged_engine_is_told_and_mended(tmp_path: Path, marker: str) -> None:
    pretend(tmp_path, "wasmtime", "9.0.0")
    folder = tmp_path / "engines" / "wasmtime-9.0.0"
    (folder / "engine.json").write_text(marker)
    engines = EngineStore(tmp_path)
    assert engines.installed() == []
    assert engines.damaged() == [folder]


def test_an_engine_that_cannot_be_looked_at_is_damaged(tmp_path: Path) -> None:
    """Such as one in another user's folder, or on a disk that is not there."""
    link = tmp_path / "engines" / "wasmtime-9.0.0"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "nothing")
    assert EngineStore(tmp_path).damaged() == [link]


def test_nobody_else_may_write_to_what_an_engine_is_known_by(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store._write_marker(tmp_path, "wasmtime", "9.0.0", "CPython 3.10.1")
    finally:
        os.umask(before)
    assert (tmp_path / "engine.json").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_installation_left_is_swept(tmp_path: Path) -> None:
    pretend(tmp_path, "wasmtime", "9.0.0")
    left = tmp_path / "engines" / ".building-x"
    left.mkdir()
    EngineStore(tmp_path).install("wasmtime==9.0.0")
    assert not left.exists()


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file")
    with pytest.raises(EngineInstallError, match="--state-dir"):
        EngineStore(tmp_path).install("wasmtime")


class FakePip:
    """Installs nothing, and refuses ``missing`` packages as pip does where there is no wheel."""

    def __init__(self, *missing: str) -> None:
        self._missing = missing
        self.installed: list[str] = []

    def __call__(self, command: list[str]) -> str:
        if "pip" in command:
            [*_, requirements] = command
            wanted = [line.split()[0] for line in Path(requirements).read_text().splitlines()]
            for one in wanted:
                if one.partition("==")[0] in self._missing:
                    raise EngineInstallError(f"no matching distribution found for {one}")
            self.installed += wanted
        return "1.1.0"


def use_pip(monkeypatch: pytest.MonkeyPatch, pip: FakePip) -> None:
    for module in (store, wheels):
        monkeypatch.setattr(module, "run", pip)


@pytest.mark.parametrize("missing", [(), ("wasmer-compiler-singlepass",)])
def test_an_engine_is_installed_without_what_is_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    pip, steps = FakePip(*missing), list[str]()
    use_pip(monkeypatch, pip)
    python = interpreters.Interpreter(Path("python3.10"), "CPython", (3, 10, 1))
    monkeypatch.setattr(interpreters, "find", lambda *_: python)
    EngineStore(tmp_path).install("wasmer", report=steps.append)
    assert ("wasmer-compiler-singlepass==1.1.0" in pip.installed) is not bool(missing)
    assert any("going on without" in step for step in steps) is bool(missing)


def test_an_engine_is_not_installed_without_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pip(monkeypatch, FakePip("wasmer-compiler-cranelift"))
    python = interpreters.Interpreter(Path("python3.10"), "CPython", (3, 10, 1))
    monkeypatch.setattr(interpreters, "find", lambda *_: python)
    with pytest.raises(EngineInstallError, match="cranelift"):
        EngineStore(tmp_path).install("wasmer")
    assert EngineStore(tmp_path).installed() == []
