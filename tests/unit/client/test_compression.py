"""Whether to ask for zstd, and the decoder by itself."""

from __future__ import annotations

import itertools
import subprocess
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
from wasmkiln.credentials import is_local
from wasmkiln.v1 import module_service_pb2 as modules

from tests.lying import honest
from tests.lying.encoded import bomb, packed
from tests.lying.server import LyingServer

REMOTE = "builder.example:50051"


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.9.1:50051", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("[::1%lo]:50051", True),
        ("unix:/run/wasmkiln/api.sock", True),
        ("unix-abstract:wasmkiln", True),
        ("ipv4:127.0.0.1:50051", True),
        ("ipv6:[::1]:50051", True),
        ("dns:localhost:50051", True),
        ("dns:///localhost:50051", True),
        ("passthrough:///127.0.0.1:50051", True),
        (REMOTE, False),
        ("10.0.0.7:50051", False),
        ("[2001:db8::1]:50051", False),
        ("dns:///builder.example:50051", False),
        ("dns://10.0.0.1/builder.example:50051", False),
        ("0.0.0.0:50051", False),
        ("localhost.example:50051", False),
    ],
)
def test_which_addresses_are_on_this_machine(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_zstd_is_asked_for_between_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WASMKILN_COMPRESSION", raising=False)
    assert choose_encodings(None, REMOTE) == ("zstd",)
    assert choose_encodings(None, "127.0.0.1:50051") == ()
    assert choose_encodings(True, "127.0.0.1:50051") == ("zstd",)
    assert choose_encodings(False, REMOTE) == ()


@pytest.mark.parametrize(
    ("text", "encodings"), [("on", ("zstd",)), ("1", ("zstd",)), ("OFF", ()), ("0", ())]
)
def test_the_environment_decides_where_the_argument_does_not(
    monkeypatch: pytest.MonkeyPatch, text: str, encodings: tuple[str, ...]
) -> None:
    monkeypatch.setenv("WASMKILN_COMPRESSION", text)
    for address in (REMOTE, "127.0.0.1:50051"):
        assert choose_encodings(None, address) == encodings
        assert choose_encodings(not encodings, address) == (() if encodings else ("zstd",))


def test_a_word_that_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMKILN_COMPRESSION", "gzip")
    with pytest.raises(ValueError, match="WASMKILN_COMPRESSION has to be on or off, not 'gzip'"):
        choose_encodings(None, REMOTE)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert choose_encodings(None, REMOTE) == ()
    assert choose_encodings(False, REMOTE) == ()
    with pytest.raises(ValueError, match=r"pip install 'wasmkiln\[zstd\]'"):
        choose_encodings(True, REMOTE)
    with pytest.raises(ArtifactMismatch, match="cannot decode"):
        Decoder("zstd", 1, lambda piece: None)


def test_a_client_on_this_machine_imports_no_zstd() -> None:
    code = "import sys, wasmkiln; wasmkiln.Client(); print('zstandard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def decode(chunks: list[bytes], size_bytes: int) -> bytes:
    pieces: list[bytes] = []
    decoder = Decoder("zstd", size_bytes, pieces.append)
    for chunk in chunks:
        decoder.feed(chunk)
    decoder.finish()
    return b"".join(pieces)


payloads = st.builds(lambda unit, times: unit * times, st.binary(max_size=300), st.integers(0, 900))


@settings(max_examples=200)
@given(st.lists(payloads, max_size=4), st.lists(st.integers(0, 2**16), max_size=8))
def test_decoding_returns_what_was_packed(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(packed, parts))
    borders = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(borders)]
    payload = b"".join(parts)
    assert decode(chunks, len(payload)) == payload


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


@pytest.mark.parametrize("size_bytes", [1, 127, 128, 20_000, 3_000_000])
def test_a_message_that_is_a_chunk_is_not_copied(size_bytes: int) -> None:
    wire = modules.CompileResponse(chunk=bytes(size_bytes)).SerializeToString()
    chunk = only_chunk(wire)
    assert isinstance(chunk, memoryview)
    assert chunk.obj is wire
    assert chunk == bytes(size_bytes)


@settings(max_examples=500)
@given(st.binary(max_size=40).map(lambda rest: b"\x12" + rest) | st.binary(max_size=40))
def test_a_chunk_is_read_as_protobuf_reads_it(wire: bytes) -> None:
    read = only_chunk(wire)
    if read is not None:
        parsed = modules.CompileResponse.FromString(wire)
        assert parsed.WhichOneof("part") == "chunk"
        assert parsed.chunk == read


@pytest.mark.parametrize(
    ("flags", "encodings"),
    [((), []), (("--compression",), ["zstd"]), (("--no-compression",), [])],
)
def test_the_command_has_a_flag(
    server: LyingServer,
    invoke: Callable[..., Result],
    tmp_path: Path,
    flags: tuple[str, ...],
    encodings: list[str],
) -> None:
    asked: list[modules.CompileRequest] = []

    def answer(request: bytes, context: Any) -> Iterator[bytes]:
        asked.append(modules.CompileRequest.FromString(request))
        return honest.HONEST["Compile"](request, context)

    (tmp_path / "m.wasm").write_bytes(honest.WASM)
    server.answers["Compile"] = answer
    assert invoke("compile", "m.wasm", "-o", "a.cwasm", *flags).exit_code == 0
    assert (tmp_path / "a.cwasm").read_bytes() == honest.ARTIFACT
    assert [list(request.accept_encodings) for request in asked] == [encodings]
    assert asked[0].inline_limit_bytes == 65_536
