"""Large artifacts that nobody reads, and modules whose invalidity shows only at their end."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable

import grpc
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import module_service_pb2_grpc

from tests.attack.target import Target
from tests.e2e import wasm

ENGINE = "wasmtime-50.0.1"
# Of 100,000 functions wasmtime makes some 26 MiB.
_FUNCTIONS = 100_000
_TIMEOUT_S = 60.0


def large(target: Target, until_s: float) -> Counter[str]:
    """Have artifacts of some 26 MiB compiled, and read nothing after the header."""
    return _compile(target, until_s, _large_module, read=False)


def late_invalid(target: Target, until_s: float) -> Counter[str]:
    """Send modules of 1.5 MB, valid but for their last function."""
    return _compile(target, until_s, late_invalid_module, read=True)


def late_invalid_module(tag: int) -> bytes:
    """Return a module whose last function returns nothing where its type says a number."""
    busy = b"\0" + b"\x20\0\x41\3\x6c\x41\7\x6a\x21\0" * 60 + b"\x20\0\x0b"
    broken = b"\0\x0b"
    count = 2_500
    bodies = (wasm.leb128(len(busy)) + busy) * count + wasm.leb128(len(broken)) + broken
    return (
        wasm.CORE_PREAMBLE
        + wasm.section(1, b"\1\x60\1\x7f\1\x7f")
        + wasm.section(3, wasm.leb128(count + 1) + b"\0" * (count + 1))
        + wasm.section(10, wasm.leb128(count + 1) + bodies)
        + wasm.section(0, b"\3tag" + tag.to_bytes(8, "big"))
    )


def _large_module(tag: int) -> bytes:
    return wasm.many_functions(_FUNCTIONS, tag=tag & 0x3FFFFFFF)


def _compile(
    target: Target, until_s: float, make: Callable[[int], bytes], *, read: bool
) -> Counter[str]:
    done: Counter[str] = Counter()
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    while time.monotonic() < until_s:
        with grpc.insecure_channel(target.address, options) as channel:
            stub = module_service_pb2_grpc.ModuleServiceStub(channel)
            request = pb.CompileRequest(
                module=make(int.from_bytes(os.urandom(4), "big")), engine=ENGINE
            )
            call = stub.Compile(request, timeout=_TIMEOUT_S)
            try:
                for _ in call:
                    if not read:
                        done["left unread"] += 1
                        call.cancel()
                        break
            except grpc.RpcError:
                with contextlib.suppress(AttributeError):
                    done[call.code().name] += 1
    return done
