"""Settings of wasmtime: which there are, and which hosts load the code that they make."""

from __future__ import annotations

from pathlib import Path

import pytest
import wasmtime
from wasmkiln import Client, IncompatibleEngine, SettingUnknown, engine_of
from wasmtime.component import Component, Linker

from tests.e2e import wasm
from tests.e2e.in_engine import run_script
from tests.e2e.programs import Installed

HERE, PULLEY = "x86_64-unknown-linux-gnu", "pulley64"
BEFORE = [
    (
        "wasmtime-50.0.1",
        HERE,
        {},
        "e584d3b5234568cfbf1c001d56d634775990c25d8a53706ffea6b25329bdda32",
    ),
    (
        "wasmtime-50.0.1",
        HERE,
        {"consume_fuel": "true", "memory_reservation": "0"},
        "6518ca1924679d455cf675795cd0213aeb7a8d90d95badca84f7451597386ae3",
    ),
    (
        "wasmtime-50.0.1",
        HERE,
        {"strategy": "winch"},
        "48b318adc1d8c7cc2c254aa8a4bfa91f0de478e0be3a26ef901a1fe0c32db617",
    ),
    (
        "wasmtime-50.0.1",
        HERE,
        {"memory_guard_size": "65536"},
        "2878a5dbb6ab4c66f446166d0b21af8e84c9b90aa2540684e3247ab10ab28385",
    ),
    (
        "wasmtime-50.0.1",
        PULLEY,
        {},
        "2bc18bf1f2a0b14f32a114d59f60356dea350b5b72566fda9b86c6c42dc227c2",
    ),
    (
        "wasmtime-50.0.1",
        PULLEY,
        {"memory_guard_size": "33554432"},
        "620ad19a66edc2d17f65886753bf9a69348e21ed69bed8d1637e7e4dfd440668",
    ),
    (
        "wasmtime-49.0.0",
        HERE,
        {},
        "cbae4f6bc2500f539d11fe86202d3cccfbbd30d997e127d699a2f8d3c58170f9",
    ),
    (
        "wasmtime-49.0.0",
        PULLEY,
        {"cranelift_opt_level": "none"},
        "20c7ed5b9289a4674b557363e70a20e29706adbdb95802c6f4e78c91c9d2586c",
    ),
]


@pytest.mark.parametrize(("engine", "target", "settings", "fingerprint"), BEFORE)
def test_fingerprints_of_0_6_0_stay(
    client: Client, engine: str, target: str, settings: dict[str, str], fingerprint: str
) -> None:
    made = client.compile(
        wasm.adder(900), engine=engine, target=target, cpu="baseline", settings=settings
    )
    assert made.header.fingerprint == fingerprint


# Loads an artifact into an engine whose settings come as NAME=NUMBER, by the functions of the C
# API, and adds.
HOST = """
import sys, wasmtime
from wasmtime import _bindings
config = wasmtime.Config()
for setting in sys.argv[2:]:
    name, _, number = setting.partition("=")
    getattr(_bindings, f"wasmtime_config_{name}_set")(config.ptr(), int(number))
engine = wasmtime.Engine(config)
store = wasmtime.Store(engine)
try:
    module = wasmtime.Module.deserialize_file(engine, sys.argv[1])
    print(wasmtime.Instance(store, module, []).exports(store)["add"](store, 40, 2))
except wasmtime.WasmtimeError as refusal:
    print("refused:", " ".join(str(refusal).split()))
"""
# An addition beside a memory with data, and another that is large and grows.
MEMORIES = """(module
  (memory 2) (data (i32.const 8) "abc") (memory 100 65536)
  (func (export "add") (param i32 i32) (result i32)
    (drop (memory.grow 1 (i32.const 100)))
    (i32.store 1 (i32.const 13000000) (i32.load8_u 0 (i32.const 9)))
    (i32.sub (i32.add (i32.add (local.get 0) (local.get 1)) (i32.load 1 (i32.const 13000000)))
             (i32.const 98))))"""
# What a host sets besides, and what one with default settings says; "" if that loads the code.
NEW = [
    ("memory_init_cow", "false", "without memory initialization with CoW"),
    ("debug_info", "true", "native debug information"),
    ("concurrency_support", "false", "without concurrency support"),
    ("memory_reservation", "3145728", "a memory reservation of '3145728'"),
    ("memory_reservation", "12345", "a memory reservation of '12345'"),
    ("memory_reservation", str(2**40), f"a memory reservation of '{2**40}'"),
    ("memory_guard_size", "3145728", "a memory guard size of '3145728'"),
    ("memory_guard_size", str(2**40), f"a memory guard size of '{2**40}'"),
    ("memory_reservation_for_growth", "12345", ""),
    ("memory_reservation_for_growth", str(2**40), ""),
    ("wasm_branch_hinting", "true", ""),
    ("wasm_compact_imports", "true", "compact_imports"),
    ("wasm_component_model_accessors", "true", "cm_accessors"),
    ("wasm_component_model_async", "false", ""),
    ("wasm_component_model_async_stackful", "true", "cm_async_stackful"),
    ("wasm_component_model_canonical_names", "true", "cm_canon_names"),
    ("wasm_component_model_more_async_builtins", "true", "cm_more_async_builtins"),
]


@pytest.mark.parametrize(("name", "value", "refusal"), NEW)
def test_code_loads_in_a_host_that_is_set_so(
    client: Client, engines: Installed, tmp_path: Path, name: str, value: str, refusal: str
) -> None:
    made = client.compile(
        wasm.from_text(MEMORIES), engine="wasmtime-50.0.1", settings={name: value}
    )
    assert dict(made.header.changed_settings) == {name: value}
    saved = made.save(tmp_path / "artifact", header=False)

    def host(*settings: str) -> str:
        return run_script(engines, "wasmtime-50.0.1", HOST, saved, *settings)

    number = {"false": "0", "true": "1"}.get(value, value)
    assert host(f"{name}={number}") == "42"
    assert refusal in host() if refusal else host() == "42"
    module = made.load()
    assert isinstance(module, wasmtime.Module)
    store = wasmtime.Store(engine_of(module))
    add = wasmtime.Instance(store, module, []).exports(store)["add"]
    assert isinstance(add, wasmtime.Func)
    assert add(store, 40, 2) == 42


@pytest.mark.parametrize("engine", ["wasmtime-50.0.1", "wasmtime-49.0.0"])
@pytest.mark.parametrize("target", [HERE, PULLEY])
def test_every_listed_end_of_a_number_compiles(client: Client, engine: str, target: str) -> None:
    [row] = [each for each in client.capabilities().engines if each.engine.id == engine]
    sizes = [each for each in row.settings if ".." in each.allowed_values[-1]]
    assert {each.name for each in sizes} == {
        "memory_reservation",
        "memory_reservation_for_growth",
        "memory_guard_size",
    }
    module = wasm.from_text(MEMORIES)
    for one in (0, -1):
        ends = {each.name: each.allowed_values[-1].split("..")[one] for each in sizes}
        made = client.compile(module, engine=engine, target=target, settings=ends)
        assert made.header.settings.items() >= ends.items()
    assert ends["memory_reservation"] == str(2**40)


@pytest.mark.parametrize(
    "value",
    [str(2**40 + 1), "-1", "00", " 1", "1e6", "0x10", "", "9" * 5000, f"0..{2**40}"],
)
def test_a_size_out_of_bounds_is_refused_before_a_job_starts(client: Client, value: str) -> None:
    jobs = sum(each.count for each in client.stats().compiles)
    with pytest.raises(SettingUnknown, match=rf"memory_guard_size.*0\.\.{2**40}"):
        client.compile(
            wasm.adder(902), engine="wasmtime-50.0.1", settings={"memory_guard_size": value}
        )
    assert sum(each.count for each in client.stats().compiles) == jobs


def test_settings_that_depend_on_one_another(
    client: Client, engines: Installed, tmp_path: Path
) -> None:
    off = {"wasm_simd": "false", "wasm_relaxed_simd": "false"}
    made = client.compile(wasm.adder(903), engine="wasmtime-50.0.1", settings=off)
    saved = made.save(tmp_path / "artifact", header=False)
    host = ["wasm_simd=0", "wasm_relaxed_simd=0"]
    assert run_script(engines, "wasmtime-50.0.1", HOST, saved, *host) == "42"
    with pytest.raises(SettingUnknown, match="relaxed simd"):
        client.compile(wasm.adder(903), engine="wasmtime-50.0.1", settings={"wasm_simd": "false"})


def test_a_component_for_a_host_without_concurrency(client: Client) -> None:
    component = wasm.from_text("""(component
      (core module $m (func (export "add") (param i32 i32) (result i32)
        local.get 0 local.get 1 i32.add))
      (core instance $i (instantiate $m))
      (func (export "add") (param "a" u32) (param "b" u32) (result u32)
        (canon lift (core func $i "add"))))""")
    settings = {"concurrency_support": "false", "wasm_component_model_async": "false"}
    made = client.compile(component, engine="wasmtime-50.0.1", settings=settings)
    with pytest.raises(IncompatibleEngine, match="concurrency"):
        made.load(wasmtime.Engine())
    loaded = made.load()
    assert isinstance(loaded, Component)
    store = wasmtime.Store(engine_of(loaded))
    add = Linker(store.engine).instantiate(store, loaded).get_func(store, "add")
    assert add is not None
    assert add(store, 40, 2) == 42
