"""The benchmark's own programs, which it runs beside the daemon, go on working."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from wasmkilnd.engines.install.store import EngineStore, InstalledEngine

from bench.engine_process import EngineProcess
from bench.host_hits import wait_for_file
from bench.inside import OPERATIONS
from bench.orders import Program
from bench.setting import Target
from bench.valkey import start_valkey
from tests.e2e.daemon import Daemon
from tests.e2e.programs import installed_engines, test_state_dir
from tests.e2e.wasm import adder


def _installed() -> list[InstalledEngine]:
    installed_engines()
    return EngineStore(test_state_dir()).installed()


@pytest.mark.parametrize("name", ["wasmer", "wasmtime"])
def test_each_operation_compiles(tmp_path: Path, name: str) -> None:
    module = tmp_path / "adder.wasm"
    module.write_bytes(adder(1))
    engine = next(each for each in _installed() if each.name == name)
    with EngineProcess(engine, "x86_64-unknown-linux-gnu", "baseline") as process:
        for operation in OPERATIONS:
            assert process.measure(operation, module) > 0


@pytest.mark.parametrize("tier", ["host_store", "memory", "redis"])
def test_a_probe_fills_its_tier_and_measures_each_operation(tmp_path: Path, tier: str) -> None:
    with ExitStack() as stack:
        place = str(tmp_path / "store")
        if tier == "redis":
            place = f"unix://{start_valkey(stack, tmp_path).socket}"
        probe = Program(stack, "bench.scale.probe", tier, "100", place)
        assert probe.begun()["filled_s"] > 0
        for operation in ("get", "put", "evict", "get"):
            assert probe.ask(op=operation, count=5)["seconds"] > 0
        assert probe.ask(op="memory")["resident"] > 10_000_000


def test_each_way_to_load_works_in_a_fresh_process(state_dir: Path, tmp_path: Path) -> None:
    module = tmp_path / "adder.wasm"
    module.write_bytes(adder(1))
    cache = tmp_path / "cache.toml"
    cache.write_text(f"[cache]\ndirectory = {json.dumps(str(tmp_path / 'cache'))}\n")
    engine = next(each for each in _installed() if each.name == "wasmtime")
    packages = Target(engine, "", "").packages
    with ExitStack() as stack:
        store = tmp_path / "store"
        daemon = stack.enter_context(Daemon(state_dir, ["--host-store-dir", str(store)]))
        client = stack.enter_context(daemon.client())
        sha256 = client.compile(module, engine=engine.id).header.module_sha256
        program = Program(
            stack,
            "bench.fresh",
            *(daemon.address, engine.id, str(cache), str(tmp_path / "none")),
            packages=packages,
        )
        program.begun()
        order: dict[str, object] = {
            "sha256": sha256,
            "wasm": str(module),
            "store": str(store),
            "artifact": wait_for_file(client, sha256, engine.id),
            "key": str(state_dir / "keys" / "trusted"),
        }
        for operation in ("digest", "call", "connect", "path", "checked", "cache", "mapped"):
            assert program.ask(op=operation, **order)["seconds"] > 0
