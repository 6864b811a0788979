"""What clients of other languages try again, and how long; docs/reference/api.md has the rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from wasmkiln.v1.module_service_pb2 import CompileRequest

from tests.lying import honest
from tests.lying.server import lying_server
from tests.polyglot import builds
from tests.polyglot.builds import Asks
from tests.polyglot.kiln import Kiln
from tests.polyglot.lies import chunk, header_first

pytestmark = [
    pytest.mark.timeout(builds.BUILD_TIMEOUT_S),
    pytest.mark.parametrize("asks", ["cpp"], indirect=True),
]
HALF = len(honest.ARTIFACT) // 2


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
