"""Installing engines: what can go wrong is told in one sentence, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from wasmkilnd.commands.engine import engine
from wasmkilnd.engines import install
from wasmkilnd.engines.install import (
    KINDS,
    PINS,
    EngineInstallError,
    EngineStore,
    InstalledEngine,
    Interpreter,
    find_python,
    parse_spec,
    pinned_versions,
    probe,
)
from wasmkilnd.ownership import NotOurs

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
    [engine] = store.installed()
    store.remove(engine)
    store.remove(engine)
    assert store.installed() == []


def test_installing_what_is_there_does_nothing(tmp_path: Path) -> None:
    pretend(tmp_path, "wasmtime", "50.0.1")
    steps: list[str] = []
    assert (
        EngineStore(tmp_path).install("wasmtime==50.0.1", report=steps.append).version == "50.0.1"
    )
    assert steps == []


def test_a_wrong_interpreter_is_refused(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    with pytest.raises(EngineInstallError, match="not a working Python"):
        store.install("wasmer", python=str(tmp_path / "nothing"))
    with pytest.raises(EngineInstallError, match=r"wasmer needs CPython 3\.9 to 3\.10"):
        store.install("wasmer", python=sys.executable)


def test_a_version_that_does_not_exist_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(EngineInstallError, match=r"uv pip install.* failed"):
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


@pytest.mark.parametrize("missing", [(), ("wasmer-compiler-singlepass",)])
def test_an_engine_is_installed_without_what_is_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    uv, steps = FakeUv(*missing), list[str]()
    use_uv(monkeypatch, uv)
    before = os.umask(0)
    try:
        engine = EngineStore(tmp_path).install("wasmer", report=steps.append)
    finally:
        os.umask(before)
    assert ("wasmer-compiler-singlepass==1.1.0" in uv.installed) is not bool(missing)
    assert any("going on without" in step for step in steps) is bool(missing)
    # Whatever the umask is, nobody else may write to what an engine is known by.
    assert (engine.path / "engine.json").stat().st_mode & 0o777 == 0o644
    assert EngineStore(tmp_path).installed() == [engine]


def test_an_engine_is_not_installed_without_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_uv(monkeypatch, FakeUv("wasmer-compiler-cranelift"))
    with pytest.raises(EngineInstallError, match="cranelift"):
        EngineStore(tmp_path).install("wasmer")
    assert EngineStore(tmp_path).installed() == []


@pytest.mark.parametrize(
    "text",
    [
        "echo 'pyenv: python3.10: command not found' >&2; exit 127",
        "echo nonsense",
        "exit 0",
    ],
)
def test_what_only_looks_like_python_is_passed_over(tmp_path: Path, text: str) -> None:
    assert probe(script(tmp_path / "python3", text)) is None


def test_what_is_not_there_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe(tmp_path / "nothing") is None
    monkeypatch.setattr(install, "_PROBE_TIMEOUT_S", 0.2)
    assert probe(script(tmp_path / "python3", "sleep 5")) is None


def test_a_real_one_says_what_it_is() -> None:
    found = probe(sys.executable)
    assert found
    assert found.fits(range(HERE, HERE + 1))
    assert not found.fits(range(HERE))
    assert not Interpreter(NOWHERE, "PyPy 3.10.1").fits(range(9, 11))
    assert not Interpreter(NOWHERE, "CPython 3.10.1").fits(range(1, 10))


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


@pytest.mark.parametrize("spec", ENGINE_SPECS)
def test_every_package_of_a_tested_version_is_pinned(spec: str) -> None:
    name, _, version = spec.partition("==")
    kind = KINDS[name]
    pins = (PINS / f"{name}-{version}.txt").read_text().replace("\\\n", "").splitlines()
    pinned = {line.split()[0] for line in pins if "--hash=sha256:" in line}
    assert pinned == {f"{package}=={version}" for package in (*kind.packages, *kind.optional)}


def test_every_default_version_is_a_tested_one() -> None:
    assert set(pinned_versions()) == set(ENGINE_SPECS)
    assert {f"{name}=={kind.default_version}" for name, kind in KINDS.items()} <= set(ENGINE_SPECS)


def test_pips_settings_of_the_index_hold_for_uv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = http://file/\ntimeout = 7\n[install]\nfind-links =\n  /a\n  /b\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert install._pip_settings() == {}
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://variable/")
    monkeypatch.setenv("PIP_CERT", "/cert.pem")
    told = install._pip_settings()
    assert told["UV_INDEX_URL"] == "http://variable/"
    assert told["UV_FIND_LINKS"] == "/a,/b"
    assert (told["UV_HTTP_TIMEOUT"], told["SSL_CERT_FILE"]) == ("7", "/cert.pem")


def test_both_ways_to_write_a_key_hold_and_what_is_for_install_counts_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "pip.conf").write_text(
        "[install]\nindex_url = https://install/\n[global]\nindex-url = https://global/\n"
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert install._pip_settings()["UV_INDEX_URL"] == "https://install/"


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


def test_a_damaged_engine_that_is_a_link_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "_install_wheels", lambda *_: None)
    told = install._run
    monkeypatch.setattr(
        install, "_run", lambda words, *_: told(words) if "venv" in words else "50.0.1"
    )
    link = tmp_path / "engines" / "wasmtime-50.0.1"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "gone")
    done = EngineStore(tmp_path).install("wasmtime==50.0.1", sys.executable)
    assert done.is_there()
    assert not link.is_symlink()


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


def test_a_disk_that_is_full_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/its/place")

    use_uv(monkeypatch, FakeUv())
    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(EngineInstallError, match="cannot use /its/place: No space left on device"):
        EngineStore(tmp_path).install("wasmer")


def test_keep_going_goes_on_after_files_that_another_user_could_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install_one(_: EngineStore, spec: str, *__: object) -> InstalledEngine:
        if spec == "wasmer":
            raise NotOurs("cannot use it: it belongs to somebody else")
        return InstalledEngine("wasmtime", "50.0.1", "CPython 3.13.1", tmp_path)

    monkeypatch.setattr(EngineStore, "install", install_one)
    words = ["install", "wasmer", "wasmtime", "--state-dir", str(tmp_path)]
    done = CliRunner().invoke(engine, [*words, "--keep-going"])
    assert done.exit_code == 0, done.stderr
    assert "warning: cannot use it: it belongs to somebody else" in done.stderr
    assert "wasmtime-50.0.1 is installed" in done.stderr
    assert isinstance(CliRunner().invoke(engine, words).exception, NotOurs)
