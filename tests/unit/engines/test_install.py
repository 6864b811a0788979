"""Installing engines: what can go wrong is told in one sentence, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from wasmkilnd.engines import install
from wasmkilnd.engines.install import (
    KINDS,
    EngineInstallError,
    EngineStore,
    Interpreter,
    find_python,
    parse_spec,
    pinned_versions,
)

from tests.e2e.programs import ENGINE_SPECS

HERE = sys.version_info.minor
NOWHERE = Path("/nonexistent")
OLD_PYTHON = Interpreter(Path("python3.10"), "CPython 3.10.1")


def pretend(root: Path, name: str, version: str) -> None:
    folder = root / "engines" / f"{name}-{version}"
    folder.mkdir(parents=True)
    (folder / "engine.json").write_text(
        json.dumps({"name": name, "version": version, "python": "CPython 3.10.1"})
    )


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "spec", ["", "v8", "wasmtime==", "wasmtime>=1", "wasmtime==1; rm -rf /", "--index-url=x"]
)
def test_what_is_no_spec(spec: str) -> None:
    with pytest.raises(EngineInstallError):
        parse_spec(spec)


def test_a_wrong_interpreter_is_refused(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    with pytest.raises(EngineInstallError, match="not a working Python"):
        store.install("wasmer", python=str(tmp_path / "nothing"))
    with pytest.raises(EngineInstallError, match=r"wasmer needs CPython 3\.9 to 3\.10"):
        store.install("wasmer", python=sys.executable)


@pytest.mark.parametrize("marker", ["", "garbage", "{}", "[]", "null"])
def test_a_damaged_engine_is_told_and_mended(tmp_path: Path, marker: str) -> None:
    pretend(tmp_path, "wasmtime", "9.0.0")
    folder = tmp_path / "engines" / "wasmtime-9.0.0"
    (folder / "engine.json").write_text(marker)
    engines = EngineStore(tmp_path)
    assert engines.installed() == []
    assert engines.damaged() == [folder]


def test_an_engine_is_removed_with_its_folder_and_a_linked_one_without(tmp_path: Path) -> None:
    pretend(tmp_path, "wasmtime", "9.0.0")
    store = EngineStore(tmp_path)
    [engine] = store.installed()
    elsewhere = engine.path.rename(tmp_path / "elsewhere")
    engine.path.symlink_to(elsewhere)
    store.remove(engine)
    assert (store.installed(), elsewhere.is_dir()) == ([], True)
    elsewhere.rename(engine.path)
    store.remove(engine)
    assert [*(tmp_path / "engines").iterdir()] == [tmp_path / "engines" / ".lock"]


def test_an_engine_that_cannot_be_looked_at_is_damaged(tmp_path: Path) -> None:
    """Such as one in another user's folder, or on a disk that is not there."""
    link = tmp_path / "engines" / "wasmtime-9.0.0"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "nothing")
    assert EngineStore(tmp_path).damaged() == [link]


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


class FakeUv:
    """Stands for every command of an installation; refuses ``missing`` packages as uv does."""

    def __init__(self, *missing: str) -> None:
        self._missing = missing
        self.installed: list[str] = []

    def __call__(self, command: Sequence[str], environ: object = None) -> str:
        if "venv" in command:
            Path(command[-1]).mkdir()
        for one in (word for word in command if "==" in word):
            if one.partition("==")[0] in self._missing:
                raise EngineInstallError(f"there is no version of {one}")
            self.installed.append(one)
        return "1.1.0\n"


def use_uv(monkeypatch: pytest.MonkeyPatch, uv: FakeUv) -> None:
    monkeypatch.setattr(install, "_run", uv)
    monkeypatch.setattr(install, "find_python", lambda *_: OLD_PYTHON)


def test_an_engine_is_installed_with_all_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = FakeUv()
    use_uv(monkeypatch, uv)
    link = tmp_path / "engines" / "wasmer-1.1.0"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "gone")  # What is damaged is replaced.
    before = os.umask(0)
    try:
        engine = EngineStore(tmp_path).install("wasmer")
    finally:
        os.umask(before)
    assert uv.installed == [
        "wasmer==1.1.0",
        "wasmer-compiler-cranelift==1.1.0",
        "wasmer-compiler-singlepass==1.1.0 ; platform_machine == 'x86_64'",
    ]
    # Whatever the umask is, nobody else may write to what an engine is known by.
    assert (engine.path / "engine.json").stat().st_mode & 0o777 == 0o644
    assert EngineStore(tmp_path).installed() == [engine]
    assert not link.is_symlink()


def test_an_engine_is_not_installed_without_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_uv(monkeypatch, FakeUv("wasmer-compiler-cranelift"))
    with pytest.raises(EngineInstallError, match="cranelift"):
        EngineStore(tmp_path).install("wasmer")
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [".lock"]


def test_find_goes_past_a_broken_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"python3.{HERE}"
    shims, managed = tmp_path / "shims", tmp_path / "pyenv" / "versions" / f"3.{HERE}.9" / "bin"
    shims.mkdir()
    managed.mkdir(parents=True)
    script(shims / name, "exit 127")
    (managed / name).symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(shims))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(sys, "_base_executable", str(shims / name), raising=False)
    found = find_python(range(HERE, HERE + 1), NOWHERE)
    assert found
    assert found.fits(range(HERE, HERE + 1))


def test_every_default_version_is_a_tested_one() -> None:
    assert set(pinned_versions()) == set(ENGINE_SPECS)
    assert {f"{name}=={kind.default_version}" for name, kind in KINDS.items()} <= set(ENGINE_SPECS)


def test_pips_settings_of_the_index_hold_for_uv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert install._pip_settings() == {}
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    (tmp_path / "pip.conf").write_text(
        "[install]\nindex_url = https://install/\nfind-links =\n  /a\n  /b\n"
        "[global]\nindex-url = https://global/\ntimeout = 7\n"
    )
    monkeypatch.setenv("PIP_CERT", "/cert.pem")
    told = install._pip_settings()
    assert (told["UV_INDEX_URL"], told["UV_FIND_LINKS"]) == ("https://install/", "/a,/b")
    assert (told["UV_HTTP_TIMEOUT"], told["SSL_CERT_FILE"]) == ("7", "/cert.pem")
    monkeypatch.setenv("PIP_INDEX_URL", "http://variable/")
    assert install._pip_settings()["UV_INDEX_URL"] == "http://variable/"


@pytest.mark.parametrize(
    ("environ", "refused"),
    [
        ({"UV_INDEX_URL": "http://192.0.2.2:8080/simple"}, "192.0.2.2"),
        ({"UV_EXTRA_INDEX_URL": "https://a/ http://user:secret@index.example/"}, "index.example"),
        ({"UV_INDEX": "ours=http://[2001:db8::1]/simple"}, "[2001:db8::1]"),
        ({"UV_INDEX_URL": "https://index.example/", "UV_FIND_LINKS": "/wheels"}, ""),
        ({"UV_INDEX_URL": "http://127.0.0.1:8080/simple"}, ""),
        ({"UV_INDEX_URL": "http://index.example/", "UV_INSECURE_HOST": "index.example:80"}, ""),
    ],
)
def test_plain_http_is_refused_for_what_is_not_pinned(
    environ: dict[str, str], refused: str
) -> None:
    if not refused:
        install._refuse_http(environ)
        return
    with pytest.raises(EngineInstallError) as failure:
        install._refuse_http(environ)
    assert f"from {refused} over plain http" in str(failure.value)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "error: Failed to install cpython\n  cause: Hash mismatch for `cpython`\n\n"
            "         Expected:\n         00aa\n\n         Computed:\n         11bb",
            "Failed to install cpython: Hash mismatch for `cpython`",
        ),
        ("warning\nNo module named venv", "No module named venv"),
        ("", ""),
    ],
)
def test_a_failure_is_told_in_the_lines_that_say_most(said: str, told: str) -> None:
    with pytest.raises(EngineInstallError) as caught:
        install._run([sys.executable, "-c", f"import sys; sys.stderr.write({said!r}); sys.exit(1)"])
    assert str(caught.value).endswith(f"failed with exit code 1: {told}")
