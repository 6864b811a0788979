"""Requests and results are translated whole, and what is malformed is refused."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from itertools import product

import pytest
from google.protobuf import duration_pb2, text_format
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln.v1 import admin_service_pb2, module_service_pb2, types_pb2
from wasmkiln.v1.module_service_pb2 import CompileResponse
from wasmkilnd.compile import LoadResult, Served
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import (
    Artifact,
    CompileSpec,
    EngineIdentity,
    ExternType,
    HostFile,
    Kind,
    Module,
    Origin,
)
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.messages import Headers, SerializedAnswer, header_of

from tests.frames import to_frames


def test_an_eviction_needs_a_scope_and_an_order_a_source() -> None:
    for fields in ("", "all: false", "engine: ''", "engine: 'wasmtime'", "module_sha256: ''"):
        with pytest.raises(WasmkilnError):
            messages.evict_scope(text_format.Parse(fields, admin_service_pb2.EvictRequest()))
    for order in (b"", module_service_pb2.CompileRequest(sha256="").SerializeToString()):
        with pytest.raises(WasmkilnError):
            messages.CompileCall(order)


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(-1, 0), (0, -1), (-1, 1), (0, 10**9), (315_576_000_001, 0)]
)
def test_a_duration_that_is_none_is_refused(seconds: int, nanos: int) -> None:
    with pytest.raises(WasmkilnError, match="cannot use grace: expected a duration"):
        messages.seconds(duration_pb2.Duration(seconds=seconds, nanos=nanos), "grace")


def test_the_answer_of_load_fits_into_what_clients_take_by_default() -> None:
    """A caller may have had a small module compiled with thousands of settings."""
    settings = {f"a_setting_of_an_engine_{number}": "speed_and_size" for number in range(40)}
    artifact = replace(ARTIFACT, spec=replace(ARTIFACT.spec, settings=settings))
    loaded = LoadResult(
        Module("a" * 64, Kind.COMPONENT, b""), "wasmtime-50.0.1", True, True, [artifact] * 3000
    )
    response = messages.load_response(loaded)
    assert len(response.artifacts) == messages.MAX_CACHED_ARTIFACTS == 1000
    assert response.ByteSize() < 4 * 1024 * 1024


@pytest.mark.parametrize("text", ["x" * 100_000, "😀" * 50_000, "\ud800" * 5000])
def test_no_engine_message_outgrows_the_headers(text: str) -> None:
    answer = messages.to_status(
        WasmkilnError(Reason.MODULE_INVALID, text, field="module", one=text, other=text)
    )
    percent_encoded = 3 * len(answer.message.encode())
    in_base64 = answer.ByteSize() * 4 // 3
    assert percent_encoded + in_base64 < 8 * 1024
    assert answer.message.endswith("…")


@given(st.text(max_size=300))
def test_short_texts_stay_as_they_are(text: str) -> None:
    shown = text.encode(errors="replace").decode()
    assert messages.to_status(WasmkilnError(Reason.MODULE_INVALID, text)).message == shown


# The first message of Compile: put together from serialized parts, it is what protobuf makes


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
    frames=to_frames(b"code"),
    compile_time_s=1.25,
    imports=(ExternType("env", "log", "function", "() -> ()"),),
    exports=(ExternType("", "run", "tag", ""), ExternType("", "x", "unheard of", "")),
)
FILE = HostFile("/var/cache/wasmkiln/f/aa/a/artifact", 2049, 2**40)


def of_size(size_bytes: int, encoding: str = "") -> Artifact:
    payload = bytes(at % 251 for at in range(size_bytes))
    return replace(ARTIFACT, size_bytes=size_bytes, frames=to_frames(payload), encoding=encoding)


def header_in(answer: SerializedAnswer) -> types_pb2.ArtifactHeader:
    response = CompileResponse.FromString(answer.first)
    assert response.WhichOneof("part") == "header"
    return response.header


def test_a_first_message_is_the_one_that_protobuf_makes() -> None:
    """Whatever calls before it were told of the artifact."""
    answers = Headers()
    for origin, queued_s, limit_bytes, file, omit_artifact in product(
        Origin, (0.0, 0.25), (0, 4), (None, FILE), (False, True)
    ):
        expected = header_of(ARTIFACT)
        expected.MergeFrom(types_pb2.ArtifactHeader(origin=f"ORIGIN_{origin.name}"))
        if queued_s:
            expected.queue_time.CopyFrom(Duration(nanos=250_000_000))
        if file:
            expected.host_file.path = file.path
            expected.host_file.device, expected.host_file.inode = file.device, file.inode
        elif limit_bytes and not omit_artifact:
            expected.inline_artifact = b"code"
        served = Served(ARTIFACT, origin, queued_s, file)
        answer = answers.answer(served, omit_artifact=omit_artifact, inline_limit_bytes=limit_bytes)
        whole = CompileResponse(header=expected)
        assert CompileResponse.FromString(answer.first) == whole
        assert len(answer.first) == whole.ByteSize()
        follows = not (file or omit_artifact or limit_bytes)
        assert answer.artifact is (ARTIFACT if follows else None)


def test_a_header_is_made_once_of_what_a_tier_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as the tier keeps that, and no longer."""
    made = list[Artifact]()

    def of_artifact(what: Artifact) -> tuple[bytes, bytes]:
        made.append(what)
        return plain(what)

    plain = messages._of_artifact
    monkeypatch.setattr(messages, "_of_artifact", of_artifact)
    answers, described = Headers(), replace(ARTIFACT, frames=())
    hits = [replace(ARTIFACT, described=described) for _ in range(3)]
    told = {answers.answer(Served(hit, Origin.REDIS)).first for hit in hits}
    assert told == {Headers().answer(Served(ARTIFACT, Origin.REDIS)).first}
    assert made == [described, ARTIFACT]
    kept = weakref.ref(described)
    del hits, described
    made.clear()
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(
    ("offset_bytes", "sha256", "begins"),
    [(1, "b", 1), (8, "b", 8), (9, "b", 0), (10, "b", 0), (2**64 - 1, "b", 0), (1, "c", 0)],
)
def test_what_follows_begins_where_the_caller_has_the_artifact_of_the_answer(
    offset_bytes: int, sha256: str, begins: int
) -> None:
    served, resume = Served(of_size(9), Origin.MEMORY), (sha256 * 64, offset_bytes)
    answer = Headers().answer(served, inline_limit_bytes=64 * KIB, resume=resume)
    header = header_in(answer)
    assert header.offset_bytes == answer.offset_bytes == begins
    if begins:
        assert (answer.artifact, answer.artifact_bytes) == (served.artifact, 9 - begins)
        assert not header.inline_artifact
    else:
        assert len(header.inline_artifact) == 9
    header = header_in(Headers().answer(served, omit_artifact=True, resume=resume))
    assert not header.offset_bytes


def test_encoded_bytes_are_in_no_header_and_it_names_the_encoding() -> None:
    encoded = replace(of_size(9, "zstd"), size_bytes=4000)
    served = Served(encoded, Origin.REDIS)
    answer = Headers().answer(served, inline_limit_bytes=64 * KIB)
    assert (answer.artifact, answer.artifact_bytes) == (encoded, 9)  # What is sent.
    header = header_in(answer)
    assert (header.content_encoding, header.size_bytes) == ("zstd", 4000)
    assert not header.inline_artifact
    assert not header_in(Headers().answer(served, omit_artifact=True)).content_encoding
