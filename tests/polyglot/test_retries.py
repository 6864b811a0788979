"""What clients of other languages try again, and how long; docs/reference/api.md has the rule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from h2.errors import ErrorCodes
from wasmkiln.v1.module_service_pb2 import CompileRequest
from wasmkiln.v1.types_pb2 import ORIGIN_COMPILED, ORIGIN_REDIS

from tests.lying import honest
from tests.lying.server import lying_server
from tests.polyglot import builds
from tests.polyglot.builds import Asks
from tests.polyglot.kiln import Kiln
from tests.polyglot.lies import chunk, header_first, resetting_server

pytestmark = pytest.mark.timeout(builds.BUILD_TIMEOUT_S)
RETRYING = pytest.mark.parametrize("asks", ["cpp", "go", "java", "node", "rust"], indirect=True)
HALF = len(honest.ARTIFACT) // 2


@RETRYING
def test_a_call_waits_until_the_daemon_answers(kiln: Kiln, asks: Asks) -> None:
    with lying_server() as liar:
        refusals = iter([grpc.StatusCode.UNAVAILABLE] * 6)

        def answer(request: bytes, context: Any) -> Iterator[bytes]:
            for code in refusals:
                context.abort(code, "the daemon is away")
            yield from honest.HONEST["Compile"](request, context)

        liar.answers["Compile"] = answer
        assert asks.once(liar.address, kiln.module).what == "compiled"
        assert liar.calls == ["Compile"] * 7
        liar.fail("Compile", grpc.StatusCode.INVALID_ARGUMENT, "no")
        assert asks.once(liar.address, kiln.module).what == ""
        assert liar.calls == ["Compile"] * 8


@RETRYING
def test_a_daemon_that_ends_cancels_its_calls(kiln: Kiln, asks: Asks) -> None:
    with lying_server() as liar:
        cancelled = iter([True])

        def answer(request: bytes, context: Any) -> Iterator[bytes]:
            if next(cancelled, False):
                context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
            yield from honest.HONEST["Compile"](request, context)

        liar.answers["Compile"] = answer
        assert asks.once(liar.address, kiln.module).what == "compiled"
        assert liar.calls == ["Compile"] * 2


@RETRYING
def test_a_fresh_artifact_that_was_cut_is_compiled_once(kiln: Kiln, asks: Asks) -> None:
    """Cut before its header, it is compiled again; behind that, the artifact has a digest."""
    asked: list[CompileRequest] = []

    def answer(message: bytes, context: Any) -> Iterator[bytes]:
        asked.append(request := CompileRequest.FromString(message))
        if len(asked) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        begin = request.offset_bytes
        yield header_first(honest.header(request), offset_bytes=begin)
        if len(asked) == 2:
            yield chunk(honest.ARTIFACT[:HALF])
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        yield chunk(honest.ARTIFACT[begin:])

    with lying_server() as liar:
        liar.answers["Compile"] = answer
        assert asks.once(liar.address, kiln.module, "--fresh", "yes").what == "compiled"
    assert [each.skip_cache_lookup for each in asked] == [True, True, False]
    assert [each.offset_bytes for each in asked] == [0, 0, HALF]


@RETRYING
def test_what_is_compiled_for_a_call_may_be_lost(kiln: Kiln, asks: Asks) -> None:
    """Then an older artifact is no answer to who wants a fresh one."""
    asked: list[CompileRequest] = []

    def answer(message: bytes, context: Any) -> Iterator[bytes]:
        asked.append(request := CompileRequest.FromString(message))
        if len(asked) == 2:
            older = b"older code"
            changes = {"artifact_sha256": hashlib.sha256(older).hexdigest()}
            size = {"size_bytes": len(older), "origin": ORIGIN_REDIS}
            yield from (header_first(honest.header(request), **changes, **size), chunk(older))
            return
        yield header_first(honest.header(request), origin=ORIGIN_COMPILED)
        if len(asked) == 1:
            yield chunk(honest.ARTIFACT[:HALF])
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        yield chunk(honest.ARTIFACT)

    with lying_server() as liar:
        liar.answers["Compile"] = answer
        said = asks.once(liar.address, kiln.module, "--fresh", "yes")
    assert (said.what, said.origin_or_id) == ("compiled", "ORIGIN_COMPILED")
    assert [each.skip_cache_lookup for each in asked] == [True, False, True]
    assert [each.offset_bytes for each in asked] == [0, HALF, 0]


@RETRYING
@pytest.mark.parametrize(
    "code",
    [None, ErrorCodes.NO_ERROR, ErrorCodes.INTERNAL_ERROR, ErrorCodes.CANCEL],
    ids=["ended", "no error", "internal error", "cancel"],
)
def test_a_stream_that_is_cut_while_the_connection_goes_on(
    kiln: Kiln, asks: Asks, code: ErrorCodes | None
) -> None:
    with resetting_server(HALF, code) as (address, asked):
        said = asks.once(address, kiln.module, "--timeout-ms", "20000")
    assert said.what == "compiled", said
    # gRPC's core drops what nobody has read yet of a stream that is cut. The others hand it on.
    kept = (0, HALF) if asks.language == "cpp" else (HALF,)
    first, second = (each.offset_bytes for each in asked)
    assert first == 0
    assert second in kept
