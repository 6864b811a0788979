"""An artifact of wasmtime says for which collector its code is."""

from __future__ import annotations

import wasmtime
from wasmkiln.shared import UNHASHED_DEFAULTS
from wasmkilnd.engines.child.wasmtime_engine import collector_of

from tests.e2e import wasm

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


def test_what_looks_different_is_unknown() -> None:
    code = artifact()
    triple = bytes([len(TRIPLE)]) + TRIPLE.encode()
    start = code.index(triple)
    for other in (b"", code[: start + 60], code[:start] + triple + b"\xff" * 80):
        assert collector_of(other, TRIPLE) == ""
    assert collector_of(code[:start] + triple + b"\x01\x01a\x07" + bytes(9), TRIPLE) == ""
    assert collector_of(code, "riscv64gc-unknown-linux-gnu") == ""
    assert collector_of(code, "") == ""
