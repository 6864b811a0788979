"""What a type checker sees of a loaded module, in a program that uses the client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parents[3] / "client"
PROGRAM = """
from typing import Any, assert_type

import wasmtime
from wasmtime.component import Component
from wasmkiln import Artifact, AsyncClient, Client

engine = wasmtime.Engine()


def blocking(client: Client, artifact: Artifact) -> None:
    assert_type(client.module("m.wasm", into=engine), wasmtime.Module)
    assert_type(client.module("m.wasm", into=engine, timeout_s=1, cpu="native"), wasmtime.Module)
    assert_type(client.module("c.wasm", into=engine, kind=Component), Component)
    assert_type(client.module("m.wasm"), Any)
    assert_type(artifact.load(engine), wasmtime.Module)
    assert_type(artifact.load(engine, kind=Component), Component)
    assert_type(artifact.load(), Any)
    client.module("m.wasm", into=engine, fallback="nothing")  # refused
    client.module("m.wasm", into=engine, unknown=1)  # refused
    client.module("m.wasm", into=engine).exports(engine)  # refused


async def waiting(client: AsyncClient) -> None:
    assert_type(await client.module("m.wasm", into=engine), wasmtime.Module)
    assert_type(await client.module("c.wasm", into=engine, kind=Component), Component)
    assert_type(await client.module("m.wasm"), Any)
    (await client.module("m.wasm", into=engine)).exports(engine)  # refused
"""


def test_a_module_has_the_type_of_its_engine_s_modules(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    wanted = {n for n, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# refused")}
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir=cache", "program.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(CLIENT)},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    of_program = [line for line in found.splitlines() if line.startswith("program.py:")]
    told = {int(line.split(":")[1]) for line in of_program if ": error: " in line}
    assert told == wanted, found
