"""The engine without the daemon: a program for an engine's own interpreter.

``python -I inside.py ENGINE FOLDER`` reads orders, each a line of JSON with a module's file, and
answers each with the seconds of a compile. FOLDER holds the daemon's ``child`` package, from which
only the engine's configuration is taken, so that both sides compile the very same thing.

Each compile happens in a fork that has the engine imported and has compiled nothing: what a
service sees that imports its engine, compiles its module and goes on. Neither the fork nor reading
the module counts. The whole module is validated first, as jobs do, and as a host does that
compiles what others wrote.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def compile_once(engine: Any, order: dict[str, Any]) -> float:
    """Return the seconds from a module's bytes to its artifact's."""
    wasm = bytearray(Path(order["wasm"]).read_bytes())
    started = time.perf_counter()
    configured = engine.configure(order["target"], order["cpu"], {})
    engine.compile_module(configured, wasm, "core").serialize()
    return time.perf_counter() - started


def main(engine_name: str, folder: str) -> None:
    """Serve orders until standard input ends."""
    sys.path.append(folder)
    from child.engine import load  # type: ignore[import-not-found]

    engine = load(engine_name)
    print("{}", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            print(compile_once(engine, json.loads(line)), flush=True)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:  # Whoever asked would wait for ever.
            raise SystemExit("the compile failed: see above")


if __name__ == "__main__":
    main(*sys.argv[1:])
