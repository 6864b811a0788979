"""Loads a module into wasmtime, each time in a fresh process.

``python -m bench.fresh ADDRESS ENGINE_ID CACHE_FILE EMPTY_FOLDER`` imports all that is needed and
then answers orders, lines of JSON, with seconds, each from a fork of its own: the fork makes its
engine and its client, and times what follows, once. So nothing is warm but the imports, as in the
second process of a host. A fork copies each page of memory that it writes to, which is most of what
takes a millisecond: an order with ``here`` is carried out in this process instead, which ends.

It runs with the daemon's own Python, which has grpcio, and finds wasmtime in PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# No thread runs before a fork, and nothing of gRPC: it need not watch forks.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc._channel  # noqa: F401 (what the client's first call imports; a fork shall have it)
import wasmtime
from wasmkiln import Client, TrustedKeys
from wasmkiln.v1 import module_service_pb2_grpc  # noqa: F401

_, ADDRESS, ENGINE_ID, CACHE_FILE, EMPTY = sys.argv

Action = Callable[[], object]


def digest(order: dict[str, Any]) -> Action:
    """From the digest: the client maps what the host store has, without a call."""
    return _load(order["sha256"], host_store_dir=order["store"])


def checked(order: dict[str, Any]) -> Action:
    """The same, with trusted keys: it checks signature and digest."""
    keys = TrustedKeys.read(Path(order["key"]))
    return _load(order["sha256"], host_store_dir=order["store"], trusted_keys=keys)


def call(order: dict[str, Any]) -> Action:
    """The client knows no host store and asks the daemon, which names the file."""
    return _load(order["sha256"], connected=True, host_store_dir=EMPTY)


def connect(order: dict[str, Any]) -> Action:
    """The same, by a client that has to connect first."""
    return _load(order["sha256"], host_store_dir=EMPTY)


def path(order: dict[str, Any]) -> Action:
    """From the module's file, which this process has not hashed yet."""
    return _load(Path(order["wasm"]), host_store_dir=order["store"])


def cache(order: dict[str, Any]) -> Action:
    """What wasmtime can do alone on one machine. The module's bytes are at hand."""
    config = wasmtime.Config()
    config.cache = CACHE_FILE
    engine, wasm = wasmtime.Engine(config), Path(order["wasm"]).read_bytes()
    return lambda: wasmtime.Module(engine, wasm)


def mapped(order: dict[str, Any]) -> Action:
    """Nothing but mapping the file, unchecked."""
    engine = _engine(order)
    return lambda: wasmtime.Module.deserialize_file(engine, order["artifact"])


def run(order: dict[str, Any]) -> Action:
    """A function of a module that is loaded and instantiated."""
    engine = _engine(order)
    module = wasmtime.Module.deserialize_file(engine, order["artifact"])
    store = wasmtime.Store(engine)
    function: Any = wasmtime.Instance(store, module, []).exports(store)["fib"]
    return lambda: (function(store, order["argument"]), module)[1]


def _engine(order: dict[str, Any]) -> wasmtime.Engine:
    config = wasmtime.Config()
    if order.get("target"):
        config.target = order["target"]
    return wasmtime.Engine(config)


def _load(source: str | Path, *, connected: bool = False, **how: Any) -> Action:
    client, engine = Client(ADDRESS, timeout_s=60, **how), wasmtime.Engine()
    if connected:
        client.stats()
    return lambda: client.module(source, engine=ENGINE_ID, into=engine)


_ALL = (digest, checked, call, connect, path, cache, mapped, run)
OPERATIONS = {each.__name__: each for each in _ALL}


def _answer(order: dict[str, Any]) -> None:
    try:
        action = OPERATIONS[order["op"]](order)
        began = time.perf_counter()
        module = action()
        seconds = time.perf_counter() - began
        if not isinstance(module, wasmtime.Module):
            raise TypeError("no module was loaded")
        print(seconds, flush=True)
    except Exception as failure:
        print(f"{type(failure).__name__}: {failure}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = 0 if order.get("here") else os.fork()
        if pid == 0:
            _answer(order)
        os.waitpid(pid, 0)
