"""Whether to ask for zstd, and the decoder by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmkiln import ArtifactMismatch
from wasmkiln.assembly import Decoder, only_chunk
from wasmkiln.client import choose_encodings
from wasmkiln.v1 import module_service_pb2 as modules

from tests.lying import honest
from tests.lying.encoded import bomb
from tests.lying.server import LyingServer

REMOTE = "builder.example:50051"


HERE = [
    *("127.0.0.1:50051", "127.8.9.1:50051", "localhost:50051", "[::1]:50051", "[::1%lo]:50051"),
    *("unix:/run/wasmkiln/api.sock", "unix-abstract:wasmkiln", "ipv4:127.0.0.1:50051"),
    *("ipv6:[::1]:50051", "dns:localhost:50051", "dns:///localhost:50051"),
    "passthrough:///127.0.0.1:50051",
]
ELSEWHERE = [
    *(REMOTE, "10.0.0.7:50051", "[2001:db8::1]:50051", "dns:///builder.example:50051"),
    *("dns://10.0.0.1/builder.example:50051", "0.0.0.0:50051", "localhost.example:50051"),
    "ipv4:127.0.0.1:50051,10.0.0.7:50051",
]


@pytest.mark.parametrize(
    ("text", "here", "remote"),
    [("", False, True), *((on, True, True) for on in ("on", "1")), ("OFF", False, False)],
)
def test_zstd_is_asked_for_between_machines_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, text: str, here: bool, remote: bool
) -> None:
    monkeypatch.setenv("WASMKILN_COMPRESSION", text)
    for address, expected in [*((each, here) for each in HERE), *((e, remote) for e in ELSEWHERE)]:
        assert choose_encodings(None, address) == (("zstd",) if expected else ())
        assert choose_encodings(True, address) == ("zstd",)
        assert choose_encodings(False, address) == ()
    monkeypatch.setenv("WASMKILN_COMPRESSION", "gzip")
    with pytest.raises(ValueError, match="WASMKILN_COMPRESSION has to be on or off, not 'gzip'"):
        choose_encodings(None, REMOTE)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert choose_encodings(None, REMOTE) == choose_encodings(False, REMOTE) == ()
    with pytest.raises(ValueError, match=r"pip install 'wasmkiln\[zstd\]'"):
        choose_encodings(True, REMOTE)
    with pytest.raises(ArtifactMismatch, match="cannot decode"):
        Decoder("zstd", 1, lambda piece: None)


def test_no_piece_of_a_bomb_is_large() -> None:
    sizes: list[int] = []

    def take(piece: bytes) -> None:
        sizes.append(len(piece))
        if sum(sizes) > 10**6:
            raise ArtifactMismatch("enough")

    with pytest.raises(ArtifactMismatch, match="enough"):
        Decoder("zstd", 10**6, take).feed(bomb())
    assert max(sizes) <= 512 * 1024
    assert sum(sizes) < 10**6 + 512 * 1024


CHUNKS = st.sampled_from([1, 127, 128, 20_000, 3_000_000]).map(
    lambda size: modules.CompileResponse(chunk=bytes(size)).SerializeToString()
)


@settings(max_examples=500)
@given(st.binary(max_size=40).map(lambda rest: b"\x12" + rest) | st.binary(max_size=40) | CHUNKS)
def test_a_chunk_is_read_as_protobuf_reads_it(wire: bytes) -> None:
    read = only_chunk(wire)
    assert read is not None or len(wire) < 100
    if read is not None:
        assert read.obj is wire, "nothing was copied"
        parsed = modules.CompileResponse.FromString(wire)
        assert parsed.WhichOneof("part") == "chunk"
        assert parsed.chunk == read


def test_the_command_has_a_flag(
    server: LyingServer, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    asked: list[Any] = []

    def answer(request: bytes, context: Any) -> Iterator[bytes]:
        asked.append(list(modules.CompileRequest.FromString(request).accept_encodings))
        return honest.HONEST["Compile"](request, context)

    (tmp_path / "m.wasm").write_bytes(honest.WASM)
    server.answers["Compile"] = answer
    for flags in ((), ("--compression",), ("--no-compression",)):
        assert invoke("compile", "m.wasm", "-o", "a.cwasm", *flags).exit_code == 0
        assert (tmp_path / "a.cwasm").read_bytes() == honest.ARTIFACT
    assert asked == [[], ["zstd"], []]
