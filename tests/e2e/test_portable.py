"""pulley64: one artifact of wasmtime for every 64-bit machine, from a daemon to what runs it."""

from __future__ import annotations

import logging
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from wasmkiln import (
    Client,
    EngineLacksFeature,
    SettingUnknown,
    TargetUnsupported,
    engine_of,
    errors,
    loading,
)
from wasmkiln.host_store import Engines
from wasmtime import component

from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, Daemon, RedisDaemon, fresh_state
from tests.e2e.fixtures import a_valkey, serving
from tests.e2e.in_engine import interpreter, run_script
from tests.e2e.programs import ROOT, WASMKILN, Installed, run
from tests.e2e.signing_keys import KeyDirectory
from tests.servers.debian import DebianUnavailable, arm64_python, qemu_binary
from tests.servers.redis_server import RedisServer

NOBODY = "127.0.0.1:1"
PULLEY = "pulley64"
ENGINES = ("wasmtime-50.0.1", "wasmtime-49.0.0")
ADDER_COMPONENT = """(component
  (core module $m (func (export "add") (param i32 i32) (result i32)
    local.get 0 local.get 1 i32.add))
  (core instance $i (instantiate $m))
  (func (export "add") (param "a" u32) (param "b" u32) (result u32)
    (canon lift (core func $i "add"))))"""
SHARED_MEMORY = "(module (memory 1 1 shared) (func (result i32) i32.const 0 i32.atomic.load))"
# Loads an artifact as docs/how-to/hosts.md says, and adds.
HOST = """
import sys, wasmtime
config = wasmtime.Config()
if sys.argv[2]:
    config.target = sys.argv[2]
engine = wasmtime.Engine(config)
store = wasmtime.Store(engine)
try:
    module = wasmtime.Module.deserialize_file(engine, sys.argv[1])
    print(wasmtime.Instance(store, module, []).exports(store)["add"](store, 40, 2))
except wasmtime.WasmtimeError as refusal:
    print("refused:", " ".join(str(refusal).split()))
"""

FALLS_BACK = """
import logging, sys, wasmkiln, wasmtime
logging.basicConfig(level=logging.WARNING)
with wasmkiln.Client(sys.argv[1], host_store_dir="none", timeout_s=120) as client:
    module = client.module(sys.argv[2], engine="wasmtime", fallback="portable")
store = wasmtime.Store(wasmkiln.engine_of(module))
print(wasmtime.Instance(store, module, []).exports(store)["add"](store, 40, 2))
"""
# Compiles a module for every machine, and prints the artifact's digest.
COMPILE = """
import hashlib, sys, wasmtime
config = wasmtime.Config()
config.target = "pulley64"
module = wasmtime.Module.from_file(wasmtime.Engine(config), sys.argv[1])
print(hashlib.sha256(module.serialize()).hexdigest())
"""

kiln = serving(*TWO_ENGINES, "wasmtime-49.0.0")
valkey = a_valkey()


@pytest.fixture(scope="module")
def client(kiln: Daemon) -> Iterator[Client]:
    keys = str(KeyDirectory.of(kiln.state_dir).folder / "trusted")
    with Client(kiln.address, host_store_dir="none", trusted_keys=keys) as it:
        yield it


@pytest.fixture(scope="module")
def store(kiln: Daemon) -> Path:
    return kiln.state_dir / "host_store"


def added(module: wasmtime.Module) -> object:
    store = wasmtime.Store(engine_of(module))
    add = wasmtime.Instance(store, module, []).exports(store)["add"]
    assert isinstance(add, wasmtime.Func)
    return add(store, 40, 2)


def crashes(client: Client) -> int:
    return sum(each.count for each in client.stats().compiles if "crash" in each.outcome)


# --- what the daemon offers -----------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_target_and_its_own_settings_are_listed(client: Client, engine: str) -> None:
    rows = {each.engine.id: each for each in client.capabilities().engines}
    targets = {each.triple: each for each in rows[engine].targets}
    portable = targets[PULLEY]
    assert (list(portable.cpus), portable.host) == (["baseline"], False)
    own = {each.name: (each.default_value, list(each.allowed_values)) for each in portable.settings}
    assert own == {
        "strategy": ("cranelift", ["cranelift"]),
        "wasm_threads": ("false", ["false"]),
        "wasm_stack_switching": ("false", ["false"]),
        "signals_based_traps": ("false", ["false", "true"]),
        "memory_guard_size": (
            "0",
            ["0", "65536", "33554432", "1099511627776", "0..1099511627776"],
        ),
    }
    assert not any(each.settings for each in targets.values() if each is not portable)
    assert PULLEY not in {each.triple for each in rows["wasmer-1.1.0"].targets}
    with pytest.raises(TargetUnsupported, match=r"wasmer-1\.1\.0 does not compile for target"):
        client.compile(wasm.adder(800), engine="wasmer", target=PULLEY)
    with pytest.raises(TargetUnsupported, match="has no cpu level 'x86-64-v3' for pulley64"):
        client.compile(wasm.adder(800), engine=engine, target=PULLEY, cpu="x86-64-v3")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_value_compiles_and_loads_or_is_refused_before(client: Client, engine: str) -> None:
    """No job may end by a signal: the daemon would count it against the module."""
    [row] = [each for each in client.capabilities().engines if each.engine.id == engine]
    [portable] = [each for each in row.targets if each.triple == PULLEY]
    own = {each.name: each for each in portable.settings}
    before, module = crashes(client), wasm.adder(801)
    refused = set()
    for offered in row.settings:
        for value in offered.allowed_values:
            wanted = {offered.name: value}
            if ".." in value:  # all numbers between two
                continue
            if wanted == {"wasm_simd": "false"}:
                wanted["wasm_relaxed_simd"] = "false"
            if value not in own.get(offered.name, offered).allowed_values:
                with pytest.raises(SettingUnknown, match=f"{offered.name} for target {PULLEY}"):
                    client.compile(module, engine=engine, target=PULLEY, settings=wanted)
                refused.add((offered.name, value))
                continue
            if wanted == {"debug_info": "true"}:  # for a function without locals alone
                with pytest.raises(EngineLacksFeature, match="register mapping"):
                    client.compile(module, engine=engine, target=PULLEY, settings=wanted)
                continue
            made = client.compile(module, engine=engine, target=PULLEY, settings=wanted)
            assert made.header.settings[offered.name] == value
            if engine == "wasmtime-50.0.1":
                assert isinstance(made.load(), wasmtime.Module)
    assert refused == {
        ("strategy", "winch"),
        ("wasm_threads", "true"),
        ("wasm_stack_switching", "true"),
    }
    assert crashes(client) == before


def test_code_that_was_asked_for_fast_is_optimised(client: Client) -> None:
    made = client.compile(wasm.adder(802), engine="wasmtime", target=PULLEY, accept_fast=True)
    assert (made.header.is_fast, made.header.settings["strategy"]) == (False, "cranelift")


@pytest.mark.parametrize("text", [SHARED_MEMORY, f"(component (core {SHARED_MEMORY[1:]})"])
def test_a_module_that_only_this_target_lacks_something_for(client: Client, text: str) -> None:
    module = wasm.from_text(text)
    assert client.compile(module, engine="wasmtime-50.0.1", omit_artifact=True)
    with pytest.raises(EngineLacksFeature, match="compile it for another target") as lacking:
        client.compile(module, engine="wasmtime-50.0.1", target=PULLEY)
    assert lacking.value.metadata["accepted_by"] == "wasmtime-50.0.1"
    assert "threads" in str(lacking.value)


@pytest.mark.parametrize(
    "module",
    [wasm.adder(803)[:-1] + b"\xff", wasm.from_text(ADDER_COMPONENT)[:-4]],
    ids=["module", "component"],
)
def test_an_invalid_module_is_called_invalid(client: Client, module: bytes) -> None:
    with pytest.raises(errors.ModuleInvalid):
        client.compile(module, engine="wasmtime-50.0.1", target=PULLEY)


# --- from the daemon to what runs it --------------------------------------------------------


def test_a_module_and_a_component_run(client: Client, engines: Installed, tmp_path: Path) -> None:
    module = client.compile(wasm.adder(804), engine="wasmtime-50.0.1", target=PULLEY)
    header = module.header
    assert (header.target, header.cpu, dict(header.changed_settings)) == (PULLEY, "baseline", {})
    assert header.settings["signals_based_traps"] == header.settings["wasm_threads"] == "false"
    assert module.verify().claims.target == PULLEY
    assert added(module.load()) == 42
    saved = module.save(tmp_path / "add.cwasm")
    assert run_script(engines, "wasmtime-50.0.1", HOST, saved, PULLEY) == "42"
    native = run_script(engines, "wasmtime-50.0.1", HOST, saved, "")
    assert "compiled for architecture 'pulley64'" in native
    engine = wasmtime.Engine()
    with pytest.raises(errors.IncompatibleEngine, match=r"artifact\.engine"):
        module.load(engine)

    made = client.compile(wasm.from_text(ADDER_COMPONENT), engine="wasmtime-50.0.1", target=PULLEY)
    loaded = made.load()
    store = wasmtime.Store(engine_of(loaded))
    assert engine_of(loaded) is engine_of(module.load())
    add = component.Linker(store.engine).instantiate(store, loaded).get_func(store, "add")
    assert add is not None
    assert add(store, 40, 2) == 42


def test_nothing_of_this_machine_is_in_it(client: Client) -> None:
    made = client.compile(wasm.adder(805), engine="wasmtime-50.0.1", target=PULLEY)
    assert b"x86_64" not in made.bytes
    assert b"has_" not in made.bytes


def test_the_host_store_serves_it_without_a_daemon(kiln: Daemon, store: Path) -> None:
    module, fueled = wasm.adder(806), {"consume_fuel": "true"}
    config = wasmtime.Config()
    config.target = PULLEY
    with Client(kiln.address, host_store_dir=store / "nowhere") as client:
        for settings in ({}, fueled):
            wanted: dict[str, Any] = {"target": PULLEY, "settings": settings}
            assert client.host_file(module, engine="wasmtime-50.0.1", **wanted)
            made = client.compile(module, engine="wasmtime-50.0.1", **wanted)
            known = Engines.parse((store / "engines.json").read_bytes())
            row = known.choose("wasmtime-50.0.1", "core")
            assert known.fingerprint(row, PULLEY, "", settings) == made.header.fingerprint
    with Client(NOBODY, host_store_dir=store, max_attempts=1) as alone:
        assert added(alone.module(module, engine="wasmtime-50.0.1", target=PULLEY)) == 42
        assert str(store) in Path("/proc/self/maps").read_text()
        own = wasmtime.Engine(config)
        assert alone.module(module, engine="wasmtime-50.0.1", target=PULLEY, into=own)
        assert alone.module(module, engine="wasmtime-50.0.1", target=PULLEY, settings=fueled)


def test_two_daemons_share_it(engines: Installed, tmp_path: Path, valkey: RedisServer) -> None:
    states = [fresh_state(tmp_path / name, engines=ENGINES[:1]) for name in "ab"]
    environ = {"WASMKILN_REDIS_URL": valkey.url, "WASMKILN_REDIS_TIMEOUT_S": "10"}
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(lambda state: RedisDaemon(state, environ=environ), states)
    with one, two, one.client() as first, two.client() as second:
        made = first.compile(wasm.adder(807), engine="wasmtime", target=PULLEY)
        assert made.header.origin == 1 + 2, "compiled"
        got = second.compile(wasm.adder(807), engine="wasmtime", target=PULLEY)
        assert second.stats().compiles[0].count == 0 or got.header.origin != made.header.origin
        assert (got.bytes, got.header.attestation) == (made.bytes, made.header.attestation)
        assert added(got.load()) == 42


def test_a_client_of_another_machine_falls_back(
    kiln: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "ARCHITECTURE", "riscv64")
    with Client(kiln.address, host_store_dir="none") as client:
        with pytest.raises(errors.IncompatibleEngine, match="this machine is riscv64"):
            client.module(wasm.adder(808), engine="wasmtime-50.0.1")
        with caplog.at_level(logging.WARNING, "wasmkiln"):
            module = client.module(wasm.adder(808), engine="wasmtime-50.0.1", fallback="portable")
    assert added(module) == 42
    assert "loading portable code of module" in caplog.text
    assert "this machine is riscv64" in caplog.text


def test_the_command_compiles_and_verifies_it(kiln: Daemon, tmp_path: Path) -> None:
    (tmp_path / "m.wasm").write_bytes(wasm.adder(809))
    out, keys = tmp_path / "m.cwasm", KeyDirectory.of(kiln.state_dir).folder / "trusted"
    where = ("--address", kiln.address)
    words = ("--engine", "wasmtime-50.0.1", "--target", PULLEY, "-o", out)
    done = run(WASMKILN, "compile", tmp_path / "m.wasm", *words, *where)
    assert done.returncode == 0, done.stderr
    done = run(WASMKILN, "verify", out, "--key", keys, "--module", tmp_path / "m.wasm", "--json")
    assert done.returncode == 0, done.stderr
    assert PULLEY in done.stdout
    again = run(WASMKILN, "verify", out, "--key", keys, "--recompile", tmp_path / "m.wasm", *where)
    assert again.returncode == 0, again.stderr
    shown = run(WASMKILN, "engines", "--settings", *where).stdout
    of_target = next(part for part in shown.split("\n\n") if PULLEY in part)
    assert "wasm_threads" in of_target
    assert "consume_fuel" not in of_target


# --- on another CPU -------------------------------------------------------------------------


# The programs of this machine run under the emulated CPU.
on_x86 = pytest.mark.skipif(loading.ARCHITECTURE != "x86_64", reason="this is no x86-64 machine")


@on_x86
def test_a_cpu_without_the_features_of_this_one_runs_it(
    client: Client, engines: Installed, tmp_path: Path
) -> None:
    """The engine's Python runs under an emulated CPU of 2008: it has no AVX, whatever is here."""
    try:
        qemu = qemu_binary()
    except DebianUnavailable as why:
        pytest.skip(f"no emulated CPU: {why}")
    [engine] = [each for each in engines if each.id == "wasmtime-50.0.1"]
    python = interpreter(engines, engine.id).resolve()
    [site] = engine.path.glob("lib/python3*/site-packages")

    def on_nehalem(path: Path, target: str) -> str:
        script = ("-c", HOST, path, target)
        done = run(qemu, "-cpu", "Nehalem", python, *script, PYTHONPATH=str(site))
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    module = wasm.adder(810)
    portable = client.compile(module, engine=engine.id, target=PULLEY)
    native = client.compile(module, engine=engine.id, cpu="x86-64-v3")
    assert on_nehalem(portable.save(tmp_path / "portable"), PULLEY) == "42"
    refused = on_nehalem(native.save(tmp_path / "native"), "")
    assert '"has_avx" is enabled, but not available on the host' in refused


@on_x86
def test_a_client_on_a_cpu_without_these_features_falls_back(kiln: Daemon, tmp_path: Path) -> None:
    """/proc/cpuinfo there lists the features of the CPU below: only wasmtime knows better."""
    try:
        qemu = qemu_binary()
    except DebianUnavailable as why:
        pytest.skip(f"no emulated CPU: {why}")
    module = tmp_path / "m.wasm"
    module.write_bytes(wasm.adder(812))
    path = f"{sysconfig.get_path('platlib')}:{ROOT / 'client'}"
    command = (qemu, "-cpu", "Nehalem", Path(sys.executable).resolve(), "-c", FALLS_BACK)
    done = run(*command, kiln.address, module, PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr[-2000:]
    assert "loading portable code of module" in done.stderr
    assert "but not available on the host" in done.stderr


def test_another_architecture_runs_the_very_same_artifact(client: Client, tmp_path: Path) -> None:
    """An aarch64 Python with its own wasmtime runs it, and compiles it to the same bytes."""
    try:
        python = arm64_python()
    except DebianUnavailable as why:
        pytest.skip(f"no emulated aarch64: {why}")
    site = ROOT / ".work" / "wasmtime-aarch64"
    if not site.exists():
        words = ("--platform", "manylinux2014_aarch64", "--only-binary", ":all:", "--no-deps")
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", site, *words)
        done = run(*pip, "wasmtime==50.0.1")
        assert done.returncode == 0, done.stderr

    def on_aarch64(script: str, *words: object) -> str:
        done = run(*python, "-c", script, *words, PYTHONPATH=str(site))
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    module = tmp_path / "m.wasm"
    module.write_bytes(wasm.adder(811))
    portable = client.compile(module, engine="wasmtime-50.0.1", target=PULLEY)
    native = client.compile(module, engine="wasmtime-50.0.1", cpu="baseline")
    saved = portable.save(tmp_path / "portable")
    assert on_aarch64(HOST, saved, PULLEY) == "42"
    assert "for architecture 'x86_64'" in on_aarch64(HOST, native.save(tmp_path / "native"), "")
    assert on_aarch64(COMPILE, module) == portable.header.artifact_sha256
