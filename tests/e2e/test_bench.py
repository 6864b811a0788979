"""The benchmark's own programs, which it runs beside the daemon, go on working."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.engine_process import EngineProcess
from bench.inside import OPERATIONS
from bench.orders import Program
from bench.valkey import start_valkey
from tests.e2e.daemon import installed_engines
from tests.e2e.wasm import adder


@pytest.mark.parametrize("name", ["wasmer", "wasmtime"])
def test_each_operation_compiles(tmp_path: Path, name: str) -> None:
    module = tmp_path / "adder.wasm"
    module.write_bytes(adder(1))
    engine = next(each for each in installed_engines().installed() if each.name == name)
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
