"""The first message of Compile: put together from serialized parts, it is what protobuf makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration
from wasmkiln.v1 import types_pb2
from wasmkiln.v1.module_service_pb2 import CompileResponse
from wasmkilnd import model
from wasmkilnd.compile import Served
from wasmkilnd.model import (
    Artifact,
    CompileSpec,
    EngineIdentity,
    ExternType,
    HostFile,
    Kind,
    Origin,
)
from wasmkilnd.rpc.messages import Headers, SerializedAnswer, header_of

KIB = 1024
ARTIFACT = Artifact(
    module_sha256="a" * 64,
    kind=Kind.COMPONENT,
    spec=CompileSpec(
        EngineIdentity("wasmtime", "50.0.1", "50", "cranelift"),
        "x86_64-unknown-linux-gnu",
        "native",
        {"consume_fuel": "true", "gc_support": "true"},
        {"consume_fuel": "true"},
        "f" * 64,
    ),
    sha256="b" * 64,
    size_bytes=4,
    frames=model.to_frames(b"code"),
    compile_time_s=1.25,
    imports=(ExternType("env", "log", "function", "() -> ()"),),
    exports=(ExternType("", "run", "tag", ""), ExternType("", "x", "unheard of", "")),
)
FILE = HostFile("/var/cache/wasmkiln/f/aa/a/artifact", 2049, 2**40)
HIT = Served(ARTIFACT, Origin.MEMORY)


def of_size(size_bytes: int, encoding: str = "") -> Artifact:
    payload = bytes(at % 251 for at in range(size_bytes))
    return replace(
        ARTIFACT, size_bytes=size_bytes, frames=model.to_frames(payload), encoding=encoding
    )


def header_in(answer: SerializedAnswer) -> types_pb2.ArtifactHeader:
    response = CompileResponse.FromString(answer.first)
    assert response.WhichOneof("part") == "header"
    return response.header


def test_a_header_is_whole_whenever_it_is_made() -> None:
    answers = Headers()
    for origin, queued_s in ((Origin.COMPILED, 0.5), (Origin.MEMORY, 0.0), (Origin.REDIS, 0.0)):
        header = header_in(answers.answer(Served(ARTIFACT, origin, queued_s)))
        assert header.origin == types_pb2.Origin.Value(f"ORIGIN_{origin.name}")
        assert header.queue_time.ToMilliseconds() == queued_s * 1000
        assert header.compile_time.ToMilliseconds() == 1250
        assert header.engine.id == "wasmtime-50.0.1"
        assert dict(header.changed_settings) == {"consume_fuel": "true"}
        assert header.kind == types_pb2.KIND_COMPONENT
        assert [i.module for i in header.imports] == ["env"]
        assert [e.kind for e in header.exports] == [
            types_pb2.EXTERN_KIND_TAG,
            types_pb2.EXTERN_KIND_OTHER,
        ]


def test_without_its_call_a_header_says_nothing_of_a_call() -> None:
    header = header_of(ARTIFACT)
    for of_call in ("origin", "queue_time", "host_file", "inline_artifact", "content_encoding"):
        assert of_call not in {field.name for field, _ in header.ListFields()}


@pytest.mark.parametrize("origin", Origin)
@pytest.mark.parametrize("queued_s", [0.0, 0.25])
@pytest.mark.parametrize("inline_limit_bytes", [0, 4])
@pytest.mark.parametrize("file", [None, FILE])
def test_a_first_message_is_the_one_that_protobuf_makes(
    origin: Origin, queued_s: float, inline_limit_bytes: int, file: HostFile | None
) -> None:
    expected = header_of(ARTIFACT)
    expected.MergeFrom(types_pb2.ArtifactHeader(origin=f"ORIGIN_{origin.name}"))
    if queued_s:
        expected.queue_time.CopyFrom(Duration(nanos=250_000_000))
    if file:
        expected.host_file.path = file.path
        expected.host_file.device, expected.host_file.inode = file.device, file.inode
    elif inline_limit_bytes:
        expected.inline_artifact = b"code"
    answer = Headers().answer(
        Served(ARTIFACT, origin, queued_s, file), inline_limit_bytes=inline_limit_bytes
    )
    whole = CompileResponse(header=expected)
    assert CompileResponse.FromString(answer.first) == whole
    assert len(answer.first) == whole.ByteSize()


@pytest.mark.parametrize(
    ("size_bytes", "limit_bytes", "inline"),
    [
        (1, 0, False),
        (1, 1, True),
        (2, 1, False),
        (20_000, 19_999, False),
        (20_000, 20_000, True),
        (20_000, 2**32 - 1, True),
        (64 * KIB, 64 * KIB, True),
        (64 * KIB, 2**32 - 1, True),
        (64 * KIB + 1, 64 * KIB + 1, False),
        (64 * KIB + 1, 2**32 - 1, False),
    ],
)
def test_an_artifact_is_in_the_header_up_to_the_callers_limit_and_64_kib(
    size_bytes: int, limit_bytes: int, inline: bool
) -> None:
    artifact = of_size(size_bytes)
    answer = Headers().answer(Served(artifact, Origin.MEMORY), inline_limit_bytes=limit_bytes)
    assert answer.artifact_bytes == size_bytes
    if inline:
        assert answer.artifact is None  # No chunks follow.
        payload = b"".join(model.payload_views(artifact.frames))
        assert header_in(answer).inline_artifact == payload
    else:
        assert answer.artifact is artifact
        assert not header_in(answer).inline_artifact


def test_a_limit_of_zero_gets_the_very_bytes_of_a_caller_that_knows_no_limit() -> None:
    answers = Headers()
    assert answers.answer(HIT, inline_limit_bytes=0) == answers.answer(HIT)
    answers.answer(HIT, inline_limit_bytes=4)
    answers.answer(replace(HIT, host_file=FILE))
    assert answers.answer(HIT) == Headers().answer(HIT)


@pytest.mark.parametrize("limit_bytes", [0, 4])
def test_a_caller_of_the_header_alone_gets_no_byte_of_the_artifact(limit_bytes: int) -> None:
    answer = Headers().answer(HIT, omit_artifact=True, inline_limit_bytes=limit_bytes)
    assert (answer.artifact, answer.artifact_bytes) == (None, 0)
    assert answer == Headers().answer(HIT, omit_artifact=True)
    assert not header_in(answer).inline_artifact


@pytest.mark.parametrize("omit_artifact", [False, True])
def test_a_file_takes_the_place_of_the_bytes(omit_artifact: bool) -> None:
    # As the host store returns it: the frames were not read.
    served = Served(replace(ARTIFACT, frames=()), Origin.HOST_STORE, host_file=FILE)
    answer = Headers().answer(served, omit_artifact=omit_artifact, inline_limit_bytes=4)
    assert (answer.artifact, answer.artifact_bytes) == (None, 0)
    header = header_in(answer)
    assert header.host_file == types_pb2.HostFile(path=FILE.path, device=2049, inode=2**40)
    assert not header.inline_artifact
    assert header.size_bytes == 4


def test_encoded_bytes_follow_in_chunks_and_the_header_names_the_encoding() -> None:
    encoded = replace(of_size(9, "zstd"), size_bytes=4000)
    answer = Headers().answer(Served(encoded, Origin.REDIS), inline_limit_bytes=64 * KIB)
    assert answer.artifact is encoded
    assert answer.artifact_bytes == 9  # What is sent.
    header = header_in(answer)
    assert (header.content_encoding, header.size_bytes) == ("zstd", 4000)
    assert not header.inline_artifact


@pytest.mark.parametrize("host_file", [None, FILE])
def test_a_header_alone_names_no_encoding(host_file: HostFile | None) -> None:
    served = Served(of_size(9, "zstd"), Origin.REDIS, host_file=host_file)
    assert not header_in(Headers().answer(served, omit_artifact=True)).content_encoding


def test_an_empty_artifact_has_no_chunk_either_way() -> None:
    served = Served(of_size(0), Origin.MEMORY)
    for limit_bytes in (0, 1):
        answer = Headers().answer(served, inline_limit_bytes=limit_bytes)
        assert answer.artifact is None or not answer.artifact.frames
        assert header_in(answer).size_bytes == 0
