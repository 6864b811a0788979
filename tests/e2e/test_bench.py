"""The benchmark's own way to run an engine, beside the daemon, goes on working."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.engine_process import EngineProcess
from bench.inside import OPERATIONS
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
