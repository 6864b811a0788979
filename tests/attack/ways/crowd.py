"""Strangers crowd the machine, and have an honest slow module compiled meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import grpc
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import module_service_pb2_grpc

from tests.attack.target import Target
from tests.e2e import wasm

ENGINE = "wasmtime-50.0.1"
HOGS = 3


def attack(target: Target, until_s: float) -> Counter[str]:
    """Send endless modules over three connections, and the slow module over a fourth."""
    done: Counter[str] = Counter()
    slow = Path(target.slow_module).read_bytes()
    senders = [Thread(target=_hog, args=(target, until_s, number, done)) for number in range(HOGS)]
    senders.append(Thread(target=_send, args=(target, until_s, lambda _: slow, "slow", done)))
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return done


def _hog(target: Target, until_s: float, number: int, done: Counter[str]) -> None:
    def module(count: int) -> bytes:
        tag = (number * 1000 + count).to_bytes(4, "big")
        return wasm.nested_blocks(600_000) + wasm.section(0, b"\3tag" + tag)

    _send(target, until_s, module, "hog", done)


def _send(
    target: Target, until_s: float, make: Callable[[int], bytes], name: str, done: Counter[str]
) -> None:
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    with grpc.insecure_channel(target.address, options) as channel:
        stub = module_service_pb2_grpc.ModuleServiceStub(channel)
        count = 0
        while time.monotonic() < until_s:
            count += 1
            request = pb.CompileRequest(
                module=make(count), engine=ENGINE, omit_artifact=True, skip_cache_lookup=True
            )
            try:
                for _ in stub.Compile(request, timeout=60):
                    pass
                done[f"{name}: OK"] += 1
            except grpc.RpcError as failure:
                done[f"{name}: {failure.code().name}"] += 1
