"""Engines side by side, their levels and settings, and components."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkiln import Client, WasmkilnError
from wasmkiln.v1.types_pb2 import ArtifactHeader

from tests.e2e import wasm
from tests.e2e.in_engine import run_script
from tests.e2e.programs import Installed

HOST = "x86_64-unknown-linux-gnu"

# Load each artifact in the engine with its default settings, and call what it exports.
CALL_ADD = {
    "wasmtime": """
import sys, wasmtime as w
for path in sys.argv[1:]:
    store = w.Store(w.Engine())
    module = w.Module.deserialize(store.engine, open(path, "rb").read())
    print(w.Instance(store, module, []).exports(store)["add"](store, 40, 2))
""",
    "wasmer": """
import sys, wasmer as w
from wasmer_compiler_cranelift import Compiler
for path in sys.argv[1:]:
    store = w.Store(w.engine.Universal(Compiler))
    module = w.Module.deserialize(store, open(path, "rb").read())
    print(w.Instance(module).exports.add(40, 2))
""",
}


@pytest.mark.parametrize("engine_id", ["wasmer-1.1.0", "wasmtime-50.0.1", "wasmtime-49.0.0"])
def test_levels_load_in_an_engine_with_default_settings(
    client: Client, engines: Installed, tmp_path: Path, engine_id: str
) -> None:
    saved = []
    for cpu in ("baseline", "x86-64-v3", "native", ""):
        artifact = client.compile(wasm.adder(7), engine=engine_id, cpu=cpu)
        assert artifact.header.cpu == (cpu or "x86-64-v3")
        saved.append(artifact.save(tmp_path / f"artifact-{cpu}", header=False))
    told = run_script(engines, engine_id, CALL_ADD[engine_id.split("-")[0]], *saved)
    assert told.split() == ["42"] * len(saved)


def test_each_level_and_version_has_its_own_fingerprint(client: Client) -> None:
    headers = [
        client.compile(wasm.adder(8), engine=engine, cpu=cpu, omit_artifact=True).header
        for engine in ("wasmtime-50.0.1", "wasmtime-49.0.0", "wasmer")
        for cpu in ("baseline", "x86-64-v2", "x86-64-v3", "native")
    ]
    assert len({header.fingerprint for header in headers}) == len(headers)


def test_wasmer_compiles_for_other_machines(client: Client) -> None:
    here = client.compile(wasm.adder(10), engine="wasmer")
    for target in ("aarch64-unknown-linux-gnu", "aarch64-apple-darwin", "x86_64-apple-darwin"):
        there = client.compile(wasm.adder(10), engine="wasmer", target=target)
        assert (there.header.target, there.header.cpu) == (target, "baseline")
        assert there.bytes != here.bytes
        assert there.header.fingerprint != here.header.fingerprint


def test_settings_are_part_of_the_artifact_and_a_named_default_is_none(
    client: Client, engines: Installed, tmp_path: Path
) -> None:
    plain = client.compile(wasm.adder(11), engine="wasmtime")
    fueled = client.compile(wasm.adder(11), engine="wasmtime", settings={"consume_fuel": "true"})
    assert dict(fueled.header.changed_settings) == {"consume_fuel": "true"}
    assert fueled.header.settings["cranelift_opt_level"] == "speed"
    assert fueled.header.fingerprint != plain.header.fingerprint
    named = client.compile(
        wasm.adder(11), engine="wasmtime", target=HOST, settings={"consume_fuel": "false"}
    )
    assert named.header.fingerprint == plain.header.fingerprint
    saved = fueled.save(tmp_path / "artifact", header=False)
    script = (
        "import sys, wasmtime as w; c = w.Config(); c.consume_fuel = True; e = w.Engine(c);"
        "s = w.Store(e); s.set_fuel(1000);"
        "m = w.Module.deserialize(e, open(sys.argv[1], 'rb').read());"
        "print(w.Instance(s, m, []).exports(s)['add'](s, 40, 2), s.get_fuel() < 1000)"
    )
    assert run_script(engines, "wasmtime-50.0.1", script, str(saved)) == "42 True"


def test_every_listed_value_compiles(client: Client) -> None:
    engine = next(e for e in client.capabilities().engines if e.engine.id == "wasmtime-50.0.1")
    listed = {each.name: each.allowed_values for each in engine.settings}
    for name in ("gc_support", "epoch_interruption", "wasm_threads"):
        assert set(listed[name]) == {"false", "true"}
        for value in listed[name]:
            settings = {name: value}
            made = client.compile(wasm.adder(13), engine="wasmtime", settings=settings).header
            assert made.settings[name] == value


@pytest.mark.parametrize("engine_id", ["wasmtime-50.0.1", "wasmtime-49.0.0"])
def test_the_collector_is_a_setting(client: Client, engine_id: str) -> None:
    engine = next(e for e in client.capabilities().engines if e.engine.id == engine_id)
    listed = next(s for s in engine.settings if s.name == "collector")
    assert (listed.default_value, set(listed.allowed_values)) == ("drc", {"drc", "none"})
    module = wasm.adder(14)

    def header(**settings: str) -> ArtifactHeader:
        return client.compile(module, engine=engine_id, settings=settings).header

    plain, named, none = header(), header(collector="drc"), header(collector="none")
    assert plain.settings["collector"] == "drc"
    assert (named.fingerprint, dict(named.changed_settings)) == (plain.fingerprint, {})
    assert none.fingerprint != plain.fingerprint
    assert dict(none.changed_settings) == {"collector": "none"}
    # The code is the same that gc_support=false asks for, under a name of its own.
    assert none.artifact_sha256 == header(gc_support="false").artifact_sha256
    assert none.artifact_sha256 != plain.artifact_sha256


def test_code_for_no_collector_cannot_use_collected_types(client: Client) -> None:
    module = wasm.from_text("(module (type $s (struct)) (func (result (ref $s)) struct.new $s))")
    assert client.compile(module, engine="wasmtime-50.0.1").header.settings["collector"] == "drc"
    with pytest.raises(WasmkilnError) as refused:
        client.compile(module, engine="wasmtime-50.0.1", settings={"collector": "none"})
    assert refused.value.reason in {"ENGINE_LACKS_FEATURE", "MODULE_INVALID"}


def test_a_component_needs_no_engine_named(
    client: Client, engines: Installed, tmp_path: Path
) -> None:
    component = wasm.from_text(
        """(component
          (core module $m (func (export "add") (param i32 i32) (result i32)
            local.get 0 local.get 1 i32.add))
          (core instance $i (instantiate $m))
          (func (export "add") (param "a" u32) (param "b" u32) (result u32)
            (canon lift (core func $i "add"))))"""
    )
    loaded = client.load(component)
    assert loaded.engine == "wasmtime-50.0.1"
    by_digest = client.compile(loaded.sha256)
    assert by_digest.header.engine.id == "wasmtime-50.0.1"
    assert [(export.name, export.kind) for export in by_digest.header.exports] == [("add", 1)]
    assert client.compile(component).header.origin == 1
    assert client.find_missing([loaded.sha256]) == []
    saved = by_digest.save(tmp_path / "artifact", header=False)
    script = (
        "import sys, wasmtime as w; from wasmtime import component as c; e = w.Engine();"
        "s = w.Store(e); m = c.Component.deserialize(e, open(sys.argv[1], 'rb').read());"
        "i = c.Linker(e).instantiate(s, m); f = i.get_func(s, 'add'); print(f(s, 40, 2))"
    )
    assert run_script(engines, "wasmtime-50.0.1", script, str(saved)) == "42"


def test_types_are_listed(client: Client) -> None:
    module = wasm.from_text(
        '(module (import "env" "log" (func (param i32 i64))) (memory (export "m") 1 2)'
        ' (func (export "f") (result f64) f64.const 0) (global (export "g") (mut i32) i32.const 1)'
        ' (table (export "t") 3 funcref))'
    )
    for engine in ("wasmer", "wasmtime"):
        header = client.compile(module, engine=engine).header
        assert [(i.module, i.name, i.kind) for i in header.imports] == [("env", "log", 1)]
        assert header.imports[0].type == "(i32, i64) -> ()"
        kinds = {export.name: export.kind for export in header.exports}
        assert kinds == {"m": 4, "f": 1, "g": 2, "t": 3}
        assert not header.types_truncated


def test_a_thousand_long_names_in_any_script_are_listed(client: Client) -> None:
    names = [f"{'鳥🔥' * 30}{number}" for number in range(1000)]
    exports = "".join(f'(export "{name}" (func 0))' for name in names)
    module = wasm.from_text(f"(module (func) {exports})")
    for engine in ("wasmer", "wasmtime"):
        header = client.compile(module, engine=engine).header
        assert [export.name for export in header.exports] == names
        assert not header.types_truncated


def test_a_flood_of_types_is_cut_off(client: Client) -> None:
    exports = "".join(f'(export "e{number}" (func 0))' for number in range(5000))
    header = client.compile(wasm.from_text(f"(module (func) {exports})"), engine="wasmtime").header
    assert len(header.exports) == 1000
    assert header.types_truncated
