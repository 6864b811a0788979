"""Fast code first: a fast compiler's artifact at once, the optimised one behind it."""

from __future__ import annotations

import time

import pytest
from wasmkiln import Artifact, Client
from wasmkiln.v1.types_pb2 import ORIGIN_COMPILED, ORIGIN_MEMORY

from tests.e2e import wasm

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
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        artifact = client.compile(module, engine=engine, accept_fast=True)
        if not artifact.header.is_fast:
            return artifact
        time.sleep(0.02)
    raise AssertionError("the optimised artifact never came")


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


@pytest.mark.parametrize("engine", ENGINES)
def test_an_optimised_artifact_that_is_there_is_taken(client: Client, engine: str) -> None:
    module = wasm.adder(9_002)
    client.compile(module, engine=engine)
    taken = client.compile(module, engine=engine, accept_fast=True)
    assert (taken.header.is_fast, taken.header.origin) == (False, ORIGIN_MEMORY)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_setting_alone_gets_a_fast_artifact(client: Client, engine: str) -> None:
    module = wasm.adder(9_003)
    named = client.compile(module, engine=engine, settings=fast_of(engine))
    assert named.header.is_fast
    plain = client.compile(module, engine=engine)
    assert not plain.header.is_fast
    assert plain.header.origin == ORIGIN_COMPILED


def test_a_caller_that_names_the_default_compiler_gets_it(client: Client) -> None:
    header = client.compile(
        wasm.adder(9_004), engine="wasmtime", settings={"strategy": "cranelift"}, accept_fast=True
    ).header
    assert not header.is_fast
    assert header.settings["strategy"] == "cranelift"
