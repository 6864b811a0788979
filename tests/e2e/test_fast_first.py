"""Fast code first: a fast compiler's artifact at once, the optimised one behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import Artifact, Client
from wasmkiln.errors import EngineLacksFeature, ModuleInvalid, SettingUnknown
from wasmkiln.v1.types_pb2 import ORIGIN_COMPILED, ORIGIN_MEMORY

from tests.corpus.modules import RealModule
from tests.e2e import wasm
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.in_engine import run_module
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.test_real_modules import MODULES, path_of
from tests.sizes import FULL

FAST = {"wasmtime": {"strategy": "winch"}, "wasmer": {"compiler": "singlepass"}}
ENGINES = ("wasmtime-50.0.1", "wasmtime-49.0.0", "wasmer-1.1.0")

TAIL_CALL = wasm.from_text(
    "(module (func $one (result i32) i32.const 1)"
    ' (func (export "f") (result i32) return_call $one))'
)
GC = wasm.from_text(
    "(module (type $s (struct (field i32)))"
    ' (func (export "f") (result i32) (struct.get $s 0 (struct.new $s (i32.const 7)))))'
)
SIMD = wasm.from_text(
    '(module (func (export "f") (result i32) (i32x4.extract_lane 1 (v128.const i32x4 1 2 3 4))))'
)


def fast_of(engine: str) -> dict[str, str]:
    """Return the setting that chooses the fast compiler of an engine."""
    return FAST[engine.partition("-")[0]]


def until_optimised(client: Client, module: bytes, engine: str) -> Artifact:
    """Ask again, as a host would, until the optimised artifact comes."""
    found: list[Artifact] = []

    def optimised() -> bool:
        found[:] = [client.compile(module, engine=engine, accept_fast=True)]
        return not found[0].header.is_fast

    eventually(optimised, "the optimised artifact never came")
    return found[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_fast_code_comes_first_and_optimised_code_later(client: Client, engine: str) -> None:
    module = wasm.adder(9_001)
    first = client.compile(module, engine=engine, accept_fast=True)
    assert first.header.is_fast
    assert first.header.origin == ORIGIN_COMPILED
    assert dict(first.header.changed_settings) == fast_of(engine)
    later = until_optimised(client, module, engine)
    assert later.header.origin == ORIGIN_MEMORY
    assert not later.header.changed_settings
    plain = client.compile(module, engine=engine)
    assert plain.bytes == later.bytes
    assert plain.header.fingerprint == later.header.fingerprint != first.header.fingerprint
    # The setting alone gets fast code too, and an optimised artifact that is there is taken.
    other = wasm.adder(9_002)
    named = client.compile(other, engine=engine, settings=fast_of(engine)).header
    optimised = client.compile(other, engine=engine).header
    taken = client.compile(other, engine=engine, accept_fast=True).header
    assert [named.is_fast, optimised.is_fast, taken.is_fast] == [True, False, False]
    assert (optimised.origin, taken.origin) == (ORIGIN_COMPILED, ORIGIN_MEMORY)


NO_TRAPS = {"signals_based_traps": "false"}


@pytest.mark.parametrize(
    ("engine", "asked", "is_fast"),
    [
        # A caller that names the default compiler gets it.
        ("wasmtime", {"settings": {"strategy": "cranelift"}}, False),
        # What a fast compiler does not know, or refuses, comes optimised.
        ("wasmer", {"cpu": "baseline"}, False),
        ("wasmer", {"cpu": "x86-64-v2"}, False),
        ("wasmtime", {"settings": NO_TRAPS}, False),
        # Fast code counts fuel and epochs.
        ("wasmtime", {"settings": {"consume_fuel": "true"}}, True),
        ("wasmtime", {"settings": {"epoch_interruption": "true"}}, True),
    ],
)
def test_what_is_asked_beside_decides(
    client: Client, engine: str, asked: dict[str, Any], is_fast: bool
) -> None:
    module, settings = wasm.adder(9_005), asked.get("settings", {})
    header = client.compile(module, engine=engine, accept_fast=True, **asked).header
    assert header.is_fast == is_fast
    assert header.cpu == asked.get("cpu", header.cpu)
    assert {**settings, **(FAST[engine] if is_fast else {})}.items() <= header.settings.items()
    if "cpu" in asked or settings == NO_TRAPS:
        named = {**asked, "settings": {**settings, **FAST[engine]}}
        with pytest.raises(SettingUnknown, match="AVX" if "cpu" in asked else None):
            client.compile(module, engine=engine, **named)


@pytest.mark.parametrize(
    ("engine", "module"),
    [(ENGINES[0], TAIL_CALL), (ENGINES[0], GC), (ENGINES[2], SIMD)],
    ids=["tail call", "gc", "simd"],
)
def test_what_a_fast_compiler_lacks_comes_optimised_in_the_same_call(
    client: Client, engine: str, module: bytes
) -> None:
    artifact = client.compile(module, engine=engine, accept_fast=True)
    assert (artifact.header.is_fast, artifact.header.origin) == (False, ORIGIN_COMPILED)
    # The module is never called invalid by the fast compiler alone.
    with pytest.raises(EngineLacksFeature, match="fast compiler") as refusal:
        client.compile(module, engine=engine, settings=fast_of(engine))
    assert refusal.value.metadata["accepted_by"] == engine
    assert client.load(module, engine=engine).engine == engine


@pytest.mark.parametrize("engine", ENGINES)
def test_an_invalid_module_is_invalid_for_fast_compilers_too(client: Client, engine: str) -> None:
    invalid = wasm.from_text('(module (func (export "f") (result i32) i64.const 1))')
    for asked in ({"settings": fast_of(engine)}, {"accept_fast": True}):
        with pytest.raises(ModuleInvalid):
            client.compile(invalid, engine=engine, **asked)


@pytest.mark.parametrize("name", ["wasmtime", "wasmer"])
@pytest.mark.parametrize(
    "module", [module for module in MODULES if module.size_bytes < 1_100_000], ids=str
)
def test_fast_code_does_what_the_module_does(
    client: Client, engines: Installed, tmp_path: Path, module: RealModule, name: str
) -> None:
    path, engine_id = path_of(module), {"wasmtime": ENGINES[0], "wasmer": ENGINES[2]}[name]
    try:
        artifact = client.compile(path, engine=engine_id, settings=FAST[name])
    except EngineLacksFeature as lacking:
        pytest.skip(lacking.message)
    saved = artifact.save(tmp_path / "artifact", header=False)
    strategy = ("--strategy", "winch") if name == "wasmtime" else ()
    by_artifact = run_module(engines, engine_id, module.name, "--artifact", str(saved), *strategy)
    # As in test_real_modules, the recipe checks what it computes.
    if FULL:
        assert by_artifact == run_module(engines, engine_id, module.name, "--wasm", str(path))


def test_a_component_has_fast_code_too(client: Client) -> None:
    component = wasm.component(wasm.adder(9_011))
    artifact = client.compile(component, accept_fast=True)
    assert (artifact.header.is_fast, artifact.header.engine.name) == (True, "wasmtime")
    assert not until_optimised(client, component, "wasmtime").header.changed_settings


@pytest.fixture
def two_workers(engines: Installed, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of a test's own, with wasmtime alone and no Redis. One compile runs behind."""
    state = fresh_state(tmp_path / "state", engines=("wasmtime-50.0.1",))
    with Daemon(state, ["--workers", "2", "--redis-url", "none"]) as daemon:
        yield daemon


def test_what_runs_behind_is_counted_logged_and_ended_by_a_drain(two_workers: Daemon) -> None:
    with two_workers.client(timeout_s=60) as client:
        module = wasm.adder(9_010)
        header = client.compile(module, engine="wasmtime", accept_fast=True).header
        until_optimised(client, module, "wasmtime")
        assert header.module_sha256 in two_workers.wait_for_log("optimised artifact ready")
        assert two_workers.metric("compiled_behind_total", outcome="compiled") == 1
        assert two_workers.metric("served_total", origin="compiled") == 1

        modules = (wasm.long_function(300_000), wasm.adder(9_009))
        for module in modules:
            last = client.compile(module, engine="wasmtime", accept_fast=True).header
            assert last.is_fast
        assert client.stats().flights == 1  # The first one's runs; the second one's waits for it.
        client.drain()
    assert two_workers.stop() == 0
    behind = [line for line in two_workers.log.splitlines() if "optimised artifact" in line]
    assert all("ready" in line and last.module_sha256 not in line for line in behind)
    assert "grace is over" not in two_workers.log
    assert "Traceback" not in two_workers.log
