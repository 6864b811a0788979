"""Fast code first: how long until a caller has code that it can run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from wasmkiln import Client
from wasmkiln.v1 import types_pb2

from bench.lab import BenchError, come_to_rest
from bench.modules import Module
from bench.raw import COMPILE, RawStream, by_bytes, header_of
from bench.results import Row, compare
from bench.setting import Setting, Target
from bench.timing import collect

FAST_GOAL = 0.25

_ROUNDS = 7
_BUDGET_S = 20.0  # For one engine and module.


def first_code(given: Setting) -> Iterator[Row]:
    """A cold call that takes fast code, beside one that waits for optimised code."""
    for target in given.targets.values():
        for module in (given.modules.medium, given.modules.large):
            yield from _first_code(given, target, module)


def _first_code(given: Setting, target: Target, module: Module) -> Iterator[Row]:
    with ExitStack() as stack:
        client = stack.enter_context(given.daemon.client())
        stream = RawStream(given.daemon.address, COMPILE)
        stack.callback(stream.close)
        requests = {
            "fast": by_bytes(module.wasm, target.engine.id, accept_fast=True),
            "optimised": by_bytes(module.wasm, target.engine.id),
        }
        if not _cold(client, stream, module, requests["fast"]).is_fast:
            return  # This engine has no fast compiler here.

        def measure(name: str) -> float:
            come_to_rest(client)
            client.evict(module_sha256=module.sha256)
            began = time.perf_counter()
            answer = stream.messages(requests[name])
            seconds = time.perf_counter() - began
            header = header_of(answer)
            if header.is_fast != (name == "fast") or header.origin != types_pb2.ORIGIN_COMPILED:
                raise BenchError(f"a call for {name} code was answered with other code")
            return seconds

        series = collect(
            {name: partial(measure, name) for name in requests},
            given.rounds(_ROUNDS),
            budget_s=_BUDGET_S,
        )
        come_to_rest(client)
    yield compare(
        "time to first usable code",
        f"{module.name}, {target.engine.id}: fast code first",
        series["fast"],
        "optimised compile",
        series["optimised"],
        FAST_GOAL,
    )


def _cold(
    client: Client, stream: RawStream, module: Module, request: bytes
) -> types_pb2.ArtifactHeader:
    come_to_rest(client)
    client.evict(module_sha256=module.sha256)
    return header_of(stream.messages(request))
