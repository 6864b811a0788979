"""A host of each language shows its engine, and gets code that loads in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import wasmtime
from wasmkiln.loading import EMPTY, section_of
from wasmkiln.v1.module_service_pb2 import CompileRequest

from tests.lying.server import lying_server
from tests.polyglot.builds import BUILD_TIMEOUT_S, Asks, Words
from tests.polyglot.kiln import FULL_ENGINE, Kiln

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_S)
# The daemon keeps what it learned: no two hosts of this test have the same engine.
OWN: dict[str, tuple[str, object]] = {
    "java": ("consume_fuel", True),
    "cpp": ("cranelift_opt_level", "none"),
    "go": ("cranelift_opt_level", "speed_and_size"),
    "node": ("wasm_relaxed_simd", False),
    "rust": ("wasm_multi_memory", False),
}
UNUSABLE = "these bytes are nothing that wasmtime compiled"


@pytest.fixture
def engine(asks: Asks) -> wasmtime.Engine:
    """The engine of a host, which counts fuel."""
    config = wasmtime.Config()
    config.consume_fuel = True
    setattr(config, *OWN[asks.language])
    return wasmtime.Engine(config)


def test_a_host_shows_its_engine(kiln: Kiln, asks: Asks, engine: wasmtime.Engine) -> None:
    """By a key first, and once by the section that it stands for; it names nothing else."""
    compiled = bytes(wasmtime.Module(engine, EMPTY).serialize())
    shown, out = kiln.folder / f"{asks.language}.engine", kiln.folder / f"{asks.language}.fits"
    shown.write_bytes(compiled)
    sent: list[CompileRequest] = []
    with grpc.insecure_channel(kiln.address) as channel, lying_server() as relay:
        compile_ = channel.unary_stream("/wasmkiln.v1.ModuleService/Compile")

        def hand_on(request: bytes, context: Any) -> Iterator[bytes]:
            sent.append(CompileRequest.FromString(request))
            try:
                yield from compile_(request)
            except grpc.RpcError as error:
                context.set_trailing_metadata(error.trailing_metadata())
                context.abort(error.code(), error.details())

        relay.answers["Compile"] = hand_on
        words: Words = [relay.address, kiln.fresh_module(), "--compatibility", shown]
        said = asks(*words, "--key", kiln.key_file, "--out", out, "--times", "2")
    assert [one.origin_or_id for one in said] == ["ORIGIN_COMPILED", "ORIGIN_MEMORY"]
    assert {one.engine_or_retry_ms for one in said} == {FULL_ENGINE}
    section = section_of(compiled)
    key = hashlib.sha256(section).digest()
    # The second that has the section has the module, too.
    assert [one.compatibility for one in sent] == [key, section, section, key]
    assert {(one.engine, one.target, one.cpu, *one.settings) for one in sent} == {("", "", "")}
    store = wasmtime.Store(engine)
    store.set_fuel(1000)
    module = wasmtime.Module.deserialize(engine, out.read_bytes())
    add: Any = wasmtime.Instance(store, module, []).exports(store)["add"]
    assert add(store, 2, 3) == 5
    assert store.get_fuel() < 1000
    shown.write_bytes(section)
    again = asks.once(kiln.address, kiln.module, "--compatibility", shown)
    assert again.what == "compiled"


def test_what_is_no_engine(kiln: Kiln, asks: Asks, tmp_path: Path) -> None:
    """The daemon says what it cannot read, or serve; a client, that wasmtime did not make it."""
    compiled = bytes(wasmtime.Module(wasmtime.Engine(), EMPTY).serialize())
    shown = tmp_path / "shown"

    def said(content: bytes, address: str = kiln.address) -> tuple[str, str]:
        shown.write_bytes(content)
        answer = asks.once(address, kiln.module, "--compatibility", shown)
        return answer.what, answer.text

    what, text = said(b"\0made up")
    assert what == "INVALID_REQUEST"
    assert text.startswith("cannot read compatibility: ")
    other = section_of(compiled).replace(b"\x0250", b"\x0207", 1)
    what, text = said(other)
    assert what == "COMPATIBILITY_UNSUPPORTED"
    assert "it is of version 07" in text
    renamed = compiled.replace(b".wasmtime.engine\0", b".wasmtime.motor!\0")
    program = Path("/bin/true").read_bytes()
    for content in (b"", kiln.module.read_bytes(), compiled[:100], renamed, program):
        what, text = said(content, "127.0.0.1:1")
        assert (what, text.endswith(UNUSABLE)) == ("unusable", True), text
