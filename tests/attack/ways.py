"""The ways to attack. ``python -m tests.attack.ways NAME SECONDS < TARGET`` goes one of them.

A way takes the target and the moment on the monotonic clock at which it has to be done, and
answers how often it did what, and what it was told: printed as JSON. It reaches loopback only.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import redis
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import module_service_pb2_grpc

from tests.e2e import floods, foreign, wasm
from tests.e2e.processes import workers_of
from tests.e2e.test_dear_requests import FIND_MISSING, REFUSED, most_keys

ENGINE = "wasmtime-50.0.1"
_TIMEOUT_S = 60.0
# Of 100,000 functions wasmtime makes some 26 MiB.
_FUNCTIONS = 100_000
_HOGS = 3
# A worker that is lost is replaced; one that is lost as often as it comes serves nobody.
_PAUSE_S = 1.5
_HALF_SENT = ("half", "silent", "pipelined", "chunks", "http2")

Done = Counter[str]
Way = Callable[["Target", float], Done]


@dataclass(frozen=True)
class Target:
    """What an attacker knows of the daemon, and of the Redis that it uses: all on loopback."""

    address: str
    """Where it serves gRPC: host:port."""
    admin: str
    """Where it serves metrics and health: host:port."""
    redis_url: str
    pid: int
    slow_module: str
    """A file with an honest module that takes long to compile."""


def _channel(target: Target) -> grpc.Channel:
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    return grpc.insecure_channel(target.address, options)


def _code_of(call: Any) -> str:
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
    return str(call.code().name)


def _requests(target: Target, until_s: float) -> Done:
    """Send them all in turn, four at a time."""
    began_s = time.monotonic()
    requests = [(method, make()) for method, make, _ in REFUSED.values()]
    requests.append((FIND_MISSING, most_keys(target.address)))
    until_s += time.monotonic() - began_s  # To make them is no attack yet.
    done: Done = Counter()
    with _channel(target) as channel:
        waiting: list[Any] = []
        for method, body in cycle(requests):
            if time.monotonic() >= until_s:
                break
            waiting.append(channel.stream_stream(method)(iter((body,)), timeout=_TIMEOUT_S))
            done["bytes"] += len(body)
            if len(waiting) >= 4:
                done[_code_of(waiting.pop(0))] += 1
        done.update(map(_code_of, waiting))
    return done


def _half_sent(target: Target, until_s: float) -> Done:
    openings = [floods.STRANGE[name] for name in _HALF_SENT]
    connect = floods.over_tcp(target.admin)
    return floods.hold_open(connect, openings, 1_600, lambda: time.monotonic() >= until_s)


def _crowd_of(kind: str) -> Way:
    def hold(target: Target, until_s: float) -> Done:
        connect, over = floods.over_tcp(target.address), lambda: time.monotonic() >= until_s
        return floods.hold_open(connect, [floods.CROWDS[kind]], 1_100, over, reads=True)

    return hold


def _flood_of(kind: str) -> Way:
    return lambda target, until_s: floods.flood(target.address, kind, until_s - time.monotonic())


def _compile(
    target: Target,
    until_s: float,
    make: Callable[[int], bytes],
    name: str = "",
    *,
    reads: bool = True,
    **wishes: Any,
) -> Done:
    """Have modules compiled, each over a connection of its own."""
    done: Done = Counter()
    while time.monotonic() < until_s:
        with _channel(target) as channel:
            stub = module_service_pb2_grpc.ModuleServiceStub(channel)
            module = make(int.from_bytes(os.urandom(4)) & 0x3FFFFFFF)
            request = pb.CompileRequest(module=module, engine=ENGINE, **wishes)
            call = stub.Compile(request, timeout=_TIMEOUT_S)
            if not reads:
                with contextlib.suppress(grpc.RpcError):
                    next(call)
                    done["left unread"] += 1
                call.cancel()
            done[f"{name}{_code_of(call)}"] += 1
    return done


def _tagged(module: bytes, tag: int) -> bytes:
    return module + wasm.section(0, b"\3tag" + tag.to_bytes(4))


def _unread(target: Target, until_s: float) -> Done:
    def make(tag: int) -> bytes:
        return wasm.many_functions(_FUNCTIONS, tag)

    return _compile(target, until_s, make, reads=False)


def _late_invalid(target: Target, until_s: float) -> Done:
    """Send modules of 2 MB, valid but for their last function."""
    module = wasm.busy_functions(2_500, last_is_broken=True)
    return _compile(target, until_s, lambda tag: _tagged(module, tag))


def _crowd(target: Target, until_s: float) -> Done:
    """Send endless modules over three connections, and the slow module over a fourth."""
    slow, endless = Path(target.slow_module).read_bytes(), wasm.nested_blocks(600_000)
    makes = [("slow: ", lambda _: slow), *[("hog: ", lambda tag: _tagged(endless, tag))] * _HOGS]
    wishes: Any = {"omit_artifact": True, "skip_cache_lookup": True}
    with ThreadPoolExecutor(len(makes)) as senders:
        sent = [
            senders.submit(_compile, target, until_s, make, name, **wishes) for name, make in makes
        ]
    return sum((each.result() for each in sent), Done())


def _replays(target: Target, until_s: float) -> Done:
    """Record every value that appears; set it again under its key or another, or harm it."""
    done: Done = Counter()
    dice = random.Random(0)
    known: dict[bytes, bytes] = {}
    with redis.Redis.from_url(target.redis_url, socket_timeout=10) as client:

        def flip(key: bytes) -> None:
            value = bytearray(known[key]) or bytearray(1)
            value[dice.randrange(len(value))] ^= 1 << dice.randrange(8)
            client.set(key, bytes(value))

        def block(key: bytes) -> None:
            # In the place of the set of its module's artifacts.
            module, braced, _ = key.partition(b"{")[2].partition(b"}")
            if braced:
                client.set(b"wasm:3:of:{%b}" % module, known[key], ex=1)

        acts: dict[str, Callable[[bytes], object]] = {
            "replay": lambda key: client.set(key, known[key]),
            "replay again": lambda key: client.set(key, known[key]),
            "swap": lambda key: client.set(key, known[dice.choice(sorted(known))]),
            "flip": flip,
            "grow": lambda key: client.set(key, known[key] + bytes(2**20)),
            "delete": client.delete,
            "block": block,
        }
        while time.monotonic() < until_s:
            with contextlib.suppress(redis.ResponseError):
                for key in client.scan_iter("wasm:*", count=500, _type="string"):
                    if key not in known and len(known) < 2_000 and (value := client.get(key)):
                        known[key] = value
                        lease = key.startswith(b"wasm:3:lease:")
                        done["leases seen" if lease else "values seen"] += 1
            for key in dice.sample(sorted(known), min(20, len(known))):
                act = dice.choice(list(acts))
                with contextlib.suppress(redis.ResponseError):
                    acts[act](key)
                    done[act] += 1
            time.sleep(0.02)
        # What it did last must not harm whoever comes afterwards.
        for key in known:
            client.delete(key)
    return done


def _as_nobody(target: Target, until_s: float) -> Done:
    """Try to stop each worker, and to lower its limits, as a service without a user of its own."""
    done: Done = Counter()
    while time.monotonic() < until_s:
        for pid in workers_of(target.pid):
            for what, was_allowed in (
                ("signal", foreign.may_signal(foreign.NOBODY, pid, signal.SIGSTOP)),
                ("limit", foreign.may_limit(foreign.NOBODY, pid, resource.RLIMIT_NOFILE, 1)),
            ):
                done[f"{what} {'allowed' if was_allowed else 'refused'}"] += 1
    return done


def _as_the_worker(target: Target, until_s: float) -> Done:
    """Kill workers and lower their limits, as a process that has their user."""
    done: Done = Counter()
    for name, harm in cycle({"spoiled": foreign.spoil, "killed": foreign.kill}.items()):
        if time.monotonic() >= until_s:
            break
        for pid in workers_of(target.pid)[:1]:
            harm(pid)
            done[name] += 1
        time.sleep(_PAUSE_S)
    return done


CONNECTIONS: dict[str, tuple[str, Way]] = {
    **{
        f"flood-{kind}": (f"HTTP/2 as fast as it goes: {kind}", _flood_of(kind))
        for kind in floods.KINDS
    },
    **{
        f"crowd-{kind}": (f"1,100 connections, more than there may be: {kind}", _crowd_of(kind))
        for kind in floods.CROWDS
    },
}
"""The ways that send no request, or none that arrives."""
WAYS: dict[str, tuple[str, Way]] = {
    **CONNECTIONS,
    "requests": ("requests that are cheap to send and dear to parse", _requests),
    "half-sent": ("1,600 unfinished HTTP requests to the admin port", _half_sent),
    "unread": ("artifacts of 26 MiB that nobody reads", _unread),
    "late-invalid": ("modules that are invalid in their last function", _late_invalid),
    "crowd": ("compiles that take all time, beside an honest slow module", _crowd),
    "replays": ("values put back, altered and swapped in Redis", _replays),
    "nobody": ("signals and limits for workers, sent by nobody", _as_nobody),
    "insider": ("workers killed and limited by who has their user", _as_the_worker),
}
"""All ways by name: what each is, and its function."""


if __name__ == "__main__":
    _, attack = WAYS[sys.argv[1]]
    target = Target(**json.load(sys.stdin))
    print(json.dumps(attack(target, time.monotonic() + float(sys.argv[2]))))
