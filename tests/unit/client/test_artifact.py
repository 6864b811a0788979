"""Saving, opening, and every reason to refuse loading; wasmer is one of a few lines."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import wasmtime
import wasmtime.component
from wasmkiln import (
    Artifact,
    ArtifactMismatch,
    EngineNotInstalled,
    IncompatibleEngine,
    Origin,
    loading,
)
from wasmkiln.v1 import types_pb2 as types

HERE = importlib.metadata.version("wasmtime")


def make(content: bytes = b"code", name: str = "wasmtime", **changes: Any) -> Artifact:
    version = {"wasmtime": HERE, "wasmer": "1.1.0"}.get(name, "1")
    header = types.ArtifactHeader(
        module_sha256="a" * 64,
        artifact_sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        engine=types.Engine(id=f"{name}-{version}", name=name, version=version),
        target="x86_64-unknown-linux-gnu",
        cpu="baseline",
        kind=types.KIND_CORE_MODULE,
    )
    for field, value in changes.items():
        if isinstance(value, dict):
            getattr(header, field).update(value)
        else:
            setattr(header, field, value)
    return Artifact(content, header)


def real(**settings: Any) -> Artifact:
    """Return what wasmtime makes of a module, with settings."""
    config = wasmtime.Config()
    for name, value in settings.items():
        setattr(config, name, value)
    wat = '(module (func (export "seven") (result i32) i32.const 7))'
    content = bytes(wasmtime.Module(wasmtime.Engine(config), wat).serialize())
    return make(content, changed_settings={k: str(v).lower() for k, v in settings.items()})


def test_an_origin_has_a_name_and_the_number_of_the_contract() -> None:
    assert {f"ORIGIN_{origin.name}": origin.value for origin in Origin} == dict(
        types.Origin.items()
    )
    artifact = make(origin=types.ORIGIN_HOST_STORE)
    assert artifact.origin is Origin.HOST_STORE
    number: int = types.ORIGIN_HOST_STORE
    assert artifact.origin == number == 5
    # Of a newer daemon: still a number, and no failure.
    newer = make(origin=77).origin
    assert (newer, newer.name, isinstance(newer, Origin)) == (77, "ORIGIN_77", True)


# --- files ------------------------------------------------------------------------------


def test_save_and_open(tmp_path: Path) -> None:
    artifact = make(changed_settings={"consume_fuel": "true"})
    before = os.umask(0o027)
    try:
        path = artifact.save(tmp_path / "m.cwasm")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path == tmp_path / "m.cwasm"
    assert path.read_bytes() == b"code"
    assert Artifact.open(path) == artifact
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.cwasm", "m.cwasm.json"]
    for name in ("m.cwasm", "m.cwasm.json"):
        artifact.save(path)
        (tmp_path / name).write_bytes(b"\xff{changed")
        with pytest.raises(ArtifactMismatch):
            Artifact.open(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name may be as long as file systems take.
    path = make(b"old").save(tmp_path / ("n" * 255), header=False)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make(b"new").save(path, header=False)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("n" * 255, b"old")]
    with pytest.raises(FileNotFoundError):
        make().save(tmp_path / "nowhere" / "m")


@pytest.mark.parametrize("follow", [True, False])
def test_a_link_is_followed_only_where_somebody_named_it(tmp_path: Path, follow: bool) -> None:
    for name in ("m", "m.json"):
        (tmp_path / f"real-{name}").write_bytes(b"old")
        (tmp_path / name).symlink_to(f"real-{name}")
    make(b"new").save(tmp_path / "m", follow_link=follow)
    assert (tmp_path / "m").is_symlink() is follow
    assert (tmp_path / "real-m").read_bytes() == (b"new" if follow else b"old")
    assert not (tmp_path / "m.json").is_symlink()
    assert (tmp_path / "real-m.json").read_bytes() == b"old"
    (tmp_path / "m.json").unlink()
    (tmp_path / "m.json").mkdir()
    with pytest.raises(FileExistsError, match="not a regular file"):
        make().save(tmp_path / "m")


def test_what_is_no_regular_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    # A pipe of our own and never a real device: if the guard broke, this would replace it.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        make(b"through").save(pipe, header=False)
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_repr_has_no_bytes() -> None:
    assert repr(make(b"secret code")) == (
        f"<Artifact of aaaaaaaaaaaa… for wasmtime-{HERE} on x86_64-unknown-linux-gnu baseline, "
        "11 bytes>"
    )


# --- engines ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loading, "ARCHITECTURE", "x86_64")
    monkeypatch.setattr(loading, "SYSTEMS", ("linux",))
    yield
    loading._engines.clear()


class Panic(BaseException):
    """As Rust's, through PyO3."""


class Module:
    """As wasmer's."""

    @classmethod
    def deserialize(cls, engine: Any, content: bytes) -> Any:
        if content == b"panic":
            raise Panic("index out of bounds")
        if content == b"interrupt":
            raise KeyboardInterrupt
        return content, engine


class Store:
    """As wasmer's."""

    def __init__(self, *_: Any) -> None: ...


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Pretends that wasmer is installed too; the versions can be changed."""
    versions = {"wasmtime": HERE, "wasmer": "1.1.0"}
    wasmer = ModuleType("wasmer")
    vars(wasmer).update(
        Store=Store, Module=Module, engine=SimpleNamespace(Universal=lambda *_: None)
    )
    monkeypatch.setitem(sys.modules, "wasmer", wasmer)
    monkeypatch.setattr(loading, "installed", versions.__getitem__)
    return versions


def test_load_makes_an_engine_with_the_artifact_s_settings() -> None:
    artifact = real(consume_fuel=True, cranelift_opt_level="none", max_wasm_stack=65536)
    store = wasmtime.Store(artifact.engine())
    store.set_fuel(1000)
    seven = wasmtime.Instance(store, artifact.load(), []).exports(store)["seven"]
    assert isinstance(seven, wasmtime.Func)
    assert seven(store) == 7
    assert artifact.engine() is artifact.engine()
    assert real().engine() is not artifact.engine()
    with pytest.raises(IncompatibleEngine, match="made with consume_fuel=true"):
        real(consume_fuel=True).load(wasmtime.Engine())
    component = wasmtime.component.Component(wasmtime.Engine(), "(component)")
    loaded = make(bytes(component.serialize()), kind=types.KIND_COMPONENT).load()
    assert isinstance(loaded, wasmtime.component.Component)


@pytest.mark.usefixtures("installed")
def test_the_caller_s_engine_is_used() -> None:
    engine, store = wasmtime.Engine(), Store()
    assert loading.engine_of(real().load(engine)) is engine
    assert make(name="wasmer").load(store) == (b"code", store)
    assert make(name="wasmer").load()[1] is make(name="wasmer").engine()
    assert loading.engine_of(Module()) is make(name="wasmer").engine()
    for name in ("wasmtime", "wasmer"):
        with pytest.raises(IncompatibleEngine, match="not a str"):
            make(name=name).load("engine")
    with pytest.raises(IncompatibleEngine, match="index out of bounds"):
        make(b"panic", name="wasmer").load()
    with pytest.raises(KeyboardInterrupt):
        make(b"interrupt", name="wasmer").load()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        *((name, "true", "not have this setting") for name in ("brand_new", "ptr", "__class__")),
        ("cranelift_opt_level", "tiny", "cranelift_opt_level=tiny: the wasmtime installed here"),
    ],
)
def test_only_a_setting_of_the_engine_is_set(name: str, value: str, says: str) -> None:
    with pytest.raises(IncompatibleEngine, match=says):
        make(changed_settings={name: value}).load()


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("wasmtime", f"{HERE.partition('.')[0]}.9.9", True),
        ("wasmtime", "51.0.0", False),
        ("wasmtime", "5.0.1", False),
        ("wasmer", "1.1.0", True),
        ("wasmer", "1.1.1", False),
    ],
)
def test_versions(installed: dict[str, str], name: str, version: str, fits: bool) -> None:
    installed[name] = version
    artifact = make(name=name) if name == "wasmer" else real()
    if fits:
        artifact.load()
    else:
        with pytest.raises(IncompatibleEngine, match=f"{name} {version} is installed"):
            artifact.load()


@pytest.mark.parametrize("name", ["wasmtime", "wasmer", "v8"])
def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineNotInstalled, match=name):
        make(name=name).load()


@pytest.mark.parametrize(
    ("artifact", "says"),
    [
        (Artifact(b"evil", make().header), "no longer those"),
        (Artifact(b"", make().header), "without omit_artifact"),
        *(
            (make(target=target), "this machine is x86_64 linux")
            for target in (
                *("aarch64-unknown-linux-gnu", "x86_64-apple-darwin", "x86_64-pc-windows-msvc"),
                *("", "linux"),
            )
        ),
    ],
)
def test_what_never_reaches_the_engine(artifact: Artifact, says: str) -> None:
    with pytest.raises(IncompatibleEngine, match=says):
        artifact.load()


def test_a_mac_is_known_by_both_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ARCHITECTURE", "aarch64")
    monkeypatch.setattr(loading, "SYSTEMS", loading._SYSTEMS["darwin"])
    loading.check_machine("aarch64-apple-darwin", "baseline")
    loading.check_machine("aarch64-apple-macosx", "native")
    with pytest.raises(IncompatibleEngine):
        loading.check_machine("x86_64-apple-darwin", "baseline")


def test_cpu_levels_are_cumulative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has = {*loading._LEVELS["x86-64-v2"], *loading._LEVELS["x86-64-v3"]} - {"avx2"}
    info = tmp_path / "cpuinfo"
    info.write_text(f"vmx flags\t: avx2\nflags\t\t: {' '.join(has)}\n\nflags\t\t: avx2\n")
    assert loading.cpu_features(info) == has
    assert loading.cpu_features(tmp_path / "none") == frozenset()
    monkeypatch.setattr(loading, "cpu_features", lambda: has)
    for cpu in ("baseline", "native", "x86-64-v2"):
        loading.check_machine("x86_64-unknown-linux-gnu", cpu)
    with pytest.raises(IncompatibleEngine, match="lacks avx2: compile for a lower") as caught:
        loading.check_machine("x86_64-unknown-linux-gnu", "x86-64-v3")
    assert caught.value.metadata == {"cpu": "x86-64-v3", "missing": "avx2"}
    # A machine that does not tell leaves it to the engine.
    monkeypatch.setattr(loading, "cpu_features", lambda: frozenset[str]())
    loading.check_machine("x86_64-unknown-linux-gnu", "x86-64-v4")
