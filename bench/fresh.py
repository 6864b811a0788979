"""Loads a module into wasmtime, each time in a fresh process: a program of the bench.

    python -m bench.fresh ADDRESS ENGINE_ID CACHE_FILE EMPTY_FOLDER

It imports all that is needed and then answers orders, lines of JSON, each in a fork of its own:
the fork makes its engine and its client, and times what follows, once. So nothing is warm but the
imports, as in the second process of a host.

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

import wasmtime
from wasmkiln import Client, TrustedKeys

Action = Callable[[], object]


class Loader:
    """Prepares loads."""

    def __init__(self, address: str, engine_id: str, cache_file: str, empty: str) -> None:
        self._address = address
        self._engine_id = engine_id
        self._cache_file = cache_file
        self._empty = empty

    def digest(self, order: dict[str, Any]) -> Action:
        """From the digest: the client maps what the host store has, without a call."""
        client = self._client(host_store_dir=order["store"])
        return self._module(client, order["sha256"])

    def checked(self, order: dict[str, Any]) -> Action:
        """The same, with trusted keys: it checks signature and digest."""
        keys = TrustedKeys.read(Path(order["key"]))
        client = self._client(host_store_dir=order["store"], trusted_keys=keys)
        return self._module(client, order["sha256"])

    def call(self, order: dict[str, Any]) -> Action:
        """The client knows no host store and asks the daemon, which names the file."""
        client = self._client(host_store_dir=self._empty)
        client.stats()  # It connects at its first call.
        return self._module(client, order["sha256"])

    def connect(self, order: dict[str, Any]) -> Action:
        """The same, by a client that has to connect first."""
        client = self._client(host_store_dir=self._empty)
        return self._module(client, order["sha256"])

    def path(self, order: dict[str, Any]) -> Action:
        """From the module's file, which this process has not hashed yet."""
        client = self._client(host_store_dir=order["store"])
        return self._module(client, Path(order["wasm"]))

    def cache(self, order: dict[str, Any]) -> Action:
        """What wasmtime can do alone on one machine. The module's bytes are at hand."""
        config = wasmtime.Config()
        config.cache = self._cache_file
        engine, wasm = wasmtime.Engine(config), Path(order["wasm"]).read_bytes()
        return lambda: wasmtime.Module(engine, wasm)

    def mapped(self, order: dict[str, Any]) -> Action:
        """Nothing but mapping the file, unchecked."""
        engine = wasmtime.Engine()
        return lambda: wasmtime.Module.deserialize_file(engine, order["artifact"])

    def _client(self, **how: Any) -> Client:
        return Client(self._address, timeout_s=60, **how)

    def _module(self, client: Client, source: str | Path) -> Action:
        engine = wasmtime.Engine()
        return lambda: client.module(source, engine=self._engine_id, into=engine)


def in_a_fork(prepare: Callable[[dict[str, Any]], Action], order: dict[str, Any]) -> float:
    """Return how long what ``prepare`` returns takes, once."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        try:
            action = prepare(order)
            began = time.perf_counter()
            module = action()
            seconds = time.perf_counter() - began
            if not isinstance(module, wasmtime.Module):
                raise TypeError("no module was loaded")
            os.write(writable, repr(seconds).encode())
        except Exception as failure:
            os.write(writable, f"{type(failure).__name__}: {failure}".encode()[:4000])
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return float(said)


def main(*arguments: str) -> None:
    """Serve orders until standard input ends."""
    loader = Loader(*arguments)
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        seconds = in_a_fork(getattr(loader, order["op"]), order)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
