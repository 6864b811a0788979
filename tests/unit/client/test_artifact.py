"""Saving, opening, and every reason to refuse loading; with engines that only pretend."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import stat
import sys
import types as python_types
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import Artifact, ArtifactMismatch, EngineNotInstalled, IncompatibleEngine, loading
from wasmkiln.v1 import types_pb2 as types


def make(content: bytes = b"code", name: str = "wasmtime", **changes: Any) -> Artifact:
    version = {"wasmtime": "50.0.1", "wasmer": "1.1.0"}.get(name, "1")
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


# --- files ------------------------------------------------------------------------------


def test_save_and_open(tmp_path: Path) -> None:
    artifact = make(changed_settings={"consume_fuel": "true"})
    path = artifact.save(tmp_path / "m.cwasm")
    assert path == tmp_path / "m.cwasm"
    assert path.read_bytes() == b"code"
    assert Artifact.open(path) == artifact
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.cwasm", "m.cwasm.json"]


def test_save_without_the_header(tmp_path: Path) -> None:
    make().save(tmp_path / "m", header=False)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    with pytest.raises(FileNotFoundError):
        Artifact.open(tmp_path / "m")


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = make().save(tmp_path / "m")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(b"old").save(tmp_path / "m", header=False)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make(b"new").save(path, header=False)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m", b"old")]


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    make(b"new").save(tmp_path / "link", header=False)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_link_is_not_followed_where_nobody_named_it(tmp_path: Path) -> None:
    for name in ("m", "m.json"):
        (tmp_path / f"real-{name}").write_bytes(b"old")
        (tmp_path / name).symlink_to(f"real-{name}")
    make(b"new").save(tmp_path / "m", follow_link=False)
    for name in ("m", "m.json"):
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / f"real-{name}").read_bytes() == b"old"


def test_a_name_may_be_as_long_as_file_systems_take(tmp_path: Path) -> None:
    make().save(tmp_path / ("n" * 255), header=False)
    assert [len(p.name) for p in tmp_path.iterdir()] == [255]


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


@pytest.mark.parametrize("name", ["m", "m.json"])
def test_open_refuses_what_was_changed(tmp_path: Path, name: str) -> None:
    path = make().save(tmp_path / "m")
    (tmp_path / name).write_bytes(b"\xff{changed")
    with pytest.raises(ArtifactMismatch):
        Artifact.open(path)


def test_repr_has_no_bytes() -> None:
    assert repr(make(b"secret code")) == (
        "<Artifact of aaaaaaaaaaaa… for wasmtime-50.0.1 on x86_64-unknown-linux-gnu baseline, "
        "11 bytes>"
    )


# --- engines that pretend ------------------------------------------------------------------


class Config:
    """As wasmtime.Config: properties that can be set and not read."""

    made: dict[str, Any]

    def __init__(self) -> None:
        self.made = {}

    consume_fuel = property(None, lambda self, value: self.made.update(consume_fuel=value))
    max_wasm_stack = property(None, lambda self, value: self.made.update(max_wasm_stack=value))

    @property
    def cranelift_opt_level(self) -> None: ...

    @cranelift_opt_level.setter
    def cranelift_opt_level(self, value: str) -> None:
        if value not in {"none", "speed"}:
            raise ValueError(f"unknown opt level: {value}")
        self.made["cranelift_opt_level"] = value

    def cache(self) -> None: ...


class Engine:
    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()


class WasmtimeError(Exception):
    pass


class Module:
    @classmethod
    def deserialize(cls, engine: Any, content: bytes) -> Any:
        if content == b"refuse":
            raise WasmtimeError("Module was compiled without\n  fuel support")
        if content == b"panic":
            raise Panic("index out of bounds")
        if content == b"interrupt":
            raise KeyboardInterrupt
        return (cls.__name__, engine, content)


class Component(Module):
    pass


class Panic(BaseException):
    pass


@pytest.fixture
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ARCHITECTURE", "x86_64")
    monkeypatch.setattr(loading, "SYSTEMS", ("linux",))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, this_machine: None) -> dict[str, str]:
    """Pretends that engines are installed; the versions can be changed."""
    versions = {"wasmtime": "50.0.3", "wasmer": "1.1.0"}
    wasmtime = python_types.ModuleType("wasmtime")
    component = python_types.ModuleType("wasmtime.component")
    vars(component)["Component"] = Component
    vars(wasmtime).update(
        Config=Config,
        Engine=Engine,
        Module=Module,
        WasmtimeError=WasmtimeError,
        component=component,
        __path__=[],
    )
    wasmer = python_types.ModuleType("wasmer")
    vars(wasmer).update(
        Store=Engine, Module=Module, engine=python_types.SimpleNamespace(Universal=lambda *_: None)
    )
    monkeypatch.setitem(sys.modules, "wasmtime", wasmtime)
    monkeypatch.setitem(sys.modules, "wasmtime.component", component)
    monkeypatch.setitem(sys.modules, "wasmer", wasmer)
    monkeypatch.setattr(loading, "installed", versions.__getitem__)
    loading._engine.cache_clear()
    loading._store.cache_clear()
    return versions


@pytest.fixture(autouse=True)
def _forget_engines() -> Any:
    yield
    loading._engine.cache_clear()
    loading._store.cache_clear()


@pytest.mark.usefixtures("installed")
def test_load_makes_an_engine_with_the_artifact_s_settings() -> None:
    artifact = make(
        changed_settings={
            "consume_fuel": "true",
            "cranelift_opt_level": "none",
            "max_wasm_stack": "65536",
        }
    )
    kind, engine, content = artifact.load()
    assert (kind, content) == ("Module", b"code")
    assert engine.config.made == {
        "consume_fuel": True,
        "cranelift_opt_level": "none",
        "max_wasm_stack": 65536,
    }
    assert artifact.engine() is engine
    assert make(b"other").load()[1] is not engine


@pytest.mark.usefixtures("installed")
def test_a_component_loads_as_one() -> None:
    assert make(kind=types.KIND_COMPONENT).load()[0] == "Component"


@pytest.mark.usefixtures("installed")
def test_the_caller_s_engine_is_used() -> None:
    engine = Engine()
    assert make().load(engine)[1] is engine
    assert make(name="wasmer").load(engine)[1] is engine
    for name in ("wasmtime", "wasmer"):
        with pytest.raises(IncompatibleEngine, match="not a str"):
            make(name=name).load("engine")


@pytest.mark.usefixtures("installed")
def test_an_engine_s_own_refusal_names_the_settings() -> None:
    artifact = make(b"refuse", changed_settings={"consume_fuel": "false"})
    with pytest.raises(IncompatibleEngine) as caught:
        artifact.load(Engine())
    assert "consume_fuel=false" in caught.value.message
    assert "Module was compiled without fuel support" in caught.value.message


@pytest.mark.parametrize("name", ["brand_new", "cache", "__class__", "made"])
@pytest.mark.usefixtures("installed")
def test_only_a_setting_of_the_engine_is_set(name: str) -> None:
    with pytest.raises(IncompatibleEngine, match="not have this setting"):
        make(changed_settings={name: "true"}).load()


@pytest.mark.usefixtures("installed")
def test_a_value_that_the_engine_refuses() -> None:
    with pytest.raises(IncompatibleEngine, match="unknown opt level: tiny"):
        make(changed_settings={"cranelift_opt_level": "tiny"}).load()


@pytest.mark.usefixtures("installed")
def test_a_wasmer_panic_is_an_incompatible_engine_and_an_interrupt_is_not() -> None:
    with pytest.raises(IncompatibleEngine, match="index out of bounds"):
        make(b"panic", name="wasmer").load()
    with pytest.raises(KeyboardInterrupt):
        make(b"interrupt", name="wasmer").load()


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("wasmtime", "50.9.9", True),
        ("wasmtime", "51.0.0", False),
        ("wasmtime", "5.0.1", False),
        ("wasmer", "1.1.0", True),
        ("wasmer", "1.1.1", False),
    ],
)
def test_versions(installed: dict[str, str], name: str, version: str, fits: bool) -> None:
    installed[name] = version
    if fits:
        make(name=name).load()
    else:
        with pytest.raises(IncompatibleEngine, match=f"{name} {version} is installed"):
            make(name=name).load()


@pytest.mark.parametrize("name", ["wasmtime", "wasmer", "v8"])
@pytest.mark.usefixtures("this_machine")
def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineNotInstalled, match=name):
        make(name=name).load()


@pytest.mark.usefixtures("installed")
def test_bytes_that_changed_never_reach_the_engine() -> None:
    with pytest.raises(IncompatibleEngine, match="no longer those"):
        Artifact(b"evil", make().header).load()
    with pytest.raises(IncompatibleEngine, match="without omit_artifact"):
        Artifact(b"", make().header).load()


@pytest.mark.parametrize(
    "target",
    [
        "aarch64-unknown-linux-gnu",
        "x86_64-apple-darwin",
        "x86_64-pc-windows-msvc",
        "",
        "linux",
    ],
)
@pytest.mark.usefixtures("installed")
def test_another_machine_s_code(target: str) -> None:
    with pytest.raises(IncompatibleEngine, match="this machine is x86_64 linux"):
        make(target=target).load()


def test_a_mac_is_known_by_both_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ARCHITECTURE", "aarch64")
    monkeypatch.setattr(loading, "SYSTEMS", loading._SYSTEMS["darwin"])
    loading.check_machine("aarch64-apple-darwin", "baseline")
    loading.check_machine("aarch64-apple-macosx", "native")
    with pytest.raises(IncompatibleEngine):
        loading.check_machine("x86_64-apple-darwin", "baseline")


def test_cpu_levels_are_cumulative(monkeypatch: pytest.MonkeyPatch, this_machine: None) -> None:
    has = {*loading._LEVELS["x86-64-v2"], *loading._LEVELS["x86-64-v3"]} - {"avx2"}
    monkeypatch.setattr(loading, "cpu_features", lambda: has)
    for cpu in ("baseline", "native", "x86-64-v2"):
        loading.check_machine("x86_64-unknown-linux-gnu", cpu)
    with pytest.raises(IncompatibleEngine, match="lacks avx2: compile for a lower") as caught:
        loading.check_machine("x86_64-unknown-linux-gnu", "x86-64-v3")
    assert caught.value.metadata == {"cpu": "x86-64-v3", "missing": "avx2"}


def test_a_machine_that_does_not_tell_leaves_it_to_the_engine(
    monkeypatch: pytest.MonkeyPatch, this_machine: None
) -> None:
    monkeypatch.setattr(loading, "cpu_features", frozenset)
    loading.check_machine("x86_64-unknown-linux-gnu", "x86-64-v4")


def test_features_are_read_from_cpuinfo(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nvmx flags\t: vnmi\nflags\t\t: fpu avx2 fma\n\nflags\t\t: x\n")
    assert loading.cpu_features(info) == {"fpu", "avx2", "fma"}
    assert loading.cpu_features(tmp_path / "none") == frozenset()


# --- the real thing, where it is installed ---------------------------------------------------


def real_artifact(wasmtime: Any, **settings: Any) -> Artifact:
    config = wasmtime.Config()
    for name, value in settings.items():
        setattr(config, name, value)
    wat = '(module (func (export "seven") (result i32) i32.const 7))'
    content = bytes(wasmtime.Module(wasmtime.Engine(config), wat).serialize())
    artifact = make(content, changed_settings={k: str(v).lower() for k, v in settings.items()})
    artifact.header.engine.version = importlib.metadata.version("wasmtime")
    return artifact


def test_wasmtime_runs_what_was_loaded() -> None:
    wasmtime = pytest.importorskip("wasmtime")
    artifact = real_artifact(wasmtime, consume_fuel=True, cranelift_opt_level="none")
    store = wasmtime.Store(artifact.engine())
    store.set_fuel(1000)
    instance = wasmtime.Instance(store, artifact.load(), [])
    assert instance.exports(store)["seven"](store) == 7


def test_wasmtime_with_other_settings_refuses() -> None:
    wasmtime = pytest.importorskip("wasmtime")
    artifact = real_artifact(wasmtime, consume_fuel=True)
    with pytest.raises(IncompatibleEngine, match="made with consume_fuel=true"):
        artifact.load(wasmtime.Engine())
