"""``artifact.load()`` in the interpreters that hosts have: wasmtime here, wasmer on 3.10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import wasmtime
from wasmkiln import AsyncClient, Client, IncompatibleEngine

from tests.e2e import wasm
from tests.e2e.in_engine import run_script
from tests.e2e.programs import Installed


def added(store: wasmtime.Store, module: Any) -> object:
    add = wasmtime.Instance(store, module, []).exports(store)["add"]
    assert isinstance(add, wasmtime.Func)
    return add(store, 40, 2)


def test_wasmtime_component(client: Client) -> None:
    artifact = client.compile(wasm.from_text("(component)"))
    from wasmtime import component

    assert isinstance(artifact.load(), component.Component)


def test_settings_come_along(client: Client) -> None:
    artifact = client.compile(
        wasm.adder(41), engine="wasmtime-50.0.1", settings={"consume_fuel": "true"}
    )
    module = artifact.load()
    store = wasmtime.Store(artifact.engine())
    store.set_fuel(1000)
    assert added(store, module) == 42
    assert store.get_fuel() < 1000
    with pytest.raises(IncompatibleEngine, match="consume_fuel"):
        artifact.load(wasmtime.Engine())


def test_code_for_no_collector_loads_beside_one(client: Client) -> None:
    artifact = client.compile(
        wasm.adder(47), engine="wasmtime-50.0.1", settings={"collector": "none"}
    )
    for engine in (artifact.engine(), wasmtime.Engine()):
        store = wasmtime.Store(engine)
        assert added(store, artifact.load(engine)) == 42


@pytest.mark.parametrize("text", ["(component)", None], ids=["component", "core module"])
def test_fast_code_comes_with_its_engine(client: Client, text: str | None) -> None:
    module = wasm.from_text(text) if text else wasm.adder(46)
    artifact = client.compile(module, engine="wasmtime-50.0.1", settings={"strategy": "winch"})
    loaded = artifact.load()
    if text is None:
        assert added(wasmtime.Store(artifact.engine()), loaded) == 42
    with pytest.raises(IncompatibleEngine, match=r"strategy=winch.*artifact\.engine\(\)"):
        artifact.load(wasmtime.Engine())
    # The engine of fast code does not fit optimised code either.
    optimised = client.compile(module, engine="wasmtime-50.0.1")
    with pytest.raises(IncompatibleEngine, match="default settings"):
        optimised.load(artifact.engine())


def test_what_cannot_be_loaded_is_refused(client: Client) -> None:
    older = client.compile(wasm.adder(42), engine="wasmtime-49.0.0")
    with pytest.raises(IncompatibleEngine, match="49"):
        older.load()
    foreign = client.compile(wasm.adder(42), engine="wasmer", target="aarch64-apple-darwin")
    with pytest.raises(IncompatibleEngine):
        foreign.load()


async def test_the_asynchronous_client_does_the_same(daemon_address: str) -> None:
    async with AsyncClient(daemon_address) as client:
        artifact = await client.compile(wasm.adder(43), engine="wasmtime-50.0.1")
        assert isinstance(artifact.load(), wasmtime.Module)
        assert (await client.stats()).redis_up
        assert await client.find_missing([artifact.header.module_sha256]) != []  # wasmer's
        assert await client.health() == "SERVING"


def test_wasmer_module(client: Client, engines: Installed, tmp_path: Path) -> None:
    """The client library on CPython 3.10, the newest Python that wasmer has wheels for."""
    saved = client.compile(wasm.adder(44), engine="wasmer").save(tmp_path / "artifact")
    script = (
        "import sys, wasmkiln, wasmer; m = wasmkiln.Artifact.open(sys.argv[1]).load();"
        "print(type(m) is wasmer.Module, wasmer.Instance(m).exports.add(40, 2))"
    )
    told = run_script(engines, "wasmer-1.1.0", script, saved, with_client=True)
    assert told == "True 42"
