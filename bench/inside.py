"""The engine without the daemon: a program for an engine's own interpreter.

    python -I inside.py ENGINE FOLDER

reads orders as lines of JSON and answers each with one. FOLDER holds the daemon's
``child`` package, from which only the engine's configuration is taken, so that both
sides compile the very same thing.

A ``first`` compile happens in a fork that has the engine imported and has compiled
nothing: what a service sees that imports its engine, compiles its module and goes
on. An ``again`` compile happens in this process, whose allocator and threads are
warm from earlier ones. Neither counts reading the module, nor the fork. Both validate
the whole module first, as a host does that compiles what others wrote, and as jobs do.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_TICK_S = 0.001


def compile_once(engine: Any, order: dict[str, Any], wasm: bytes) -> float:
    """Return the seconds from a module's bytes to its artifact's."""
    started = time.perf_counter()
    configured = engine.configure(order["target"], order["cpu"], {})
    engine.serialize(engine.compile(configured, wasm, "core"))
    return time.perf_counter() - started


def in_a_fork(engine: Any, order: dict[str, Any], wasm: bytes) -> float:
    """Compile in a process of its own."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        os.write(writable, repr(compile_once(engine, order, wasm)).encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as answer:
        seconds = answer.read()
    os.waitpid(pid, 0)
    return float(seconds)


def longest_stall(engine: Any, order: dict[str, Any], wasm: bytes) -> float:
    """Return for how long another thread of this process could not run during a compile."""
    compiling = threading.Event()
    compiling.set()
    longest = 0.0

    def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while compiling.is_set():
            time.sleep(_TICK_S)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticker = threading.Thread(target=tick)
    ticker.start()
    time.sleep(10 * _TICK_S)
    compile_once(engine, order, wasm)
    compiling.clear()
    ticker.join()
    return longest


OPERATIONS = {"first": in_a_fork, "again": compile_once, "stall": longest_stall}


def main(engine_name: str, folder: str) -> None:
    """Serve orders until standard input ends."""
    sys.path.append(folder)
    from child.engine import load  # type: ignore[import-not-found]

    engine = load(engine_name)
    for line in sys.stdin:
        order = json.loads(line)
        wasm = Path(order["wasm"]).read_bytes()
        seconds = OPERATIONS[order["op"]](engine, order, wasm)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
