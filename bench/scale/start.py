"""How long a daemon takes to start whose host store is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.lab import Daemon, make_state
from bench.results import Row, compare
from bench.scale import host_files
from bench.scale.entries import Entries
from bench.setting import Setting
from bench.timing import collect

START_GOAL = 1.2

_ROUNDS = 4
_REAL = 100


def starts(given: Setting) -> Iterator[Row]:
    """A daemon's start until it serves, with a full host store and with an empty one."""
    files = host_files.files_of(given.sizes[-1])
    full, empty = given.folder / "full-store", given.folder / "empty-store"
    real = range(0, files, files // _REAL)
    asyncio.run(host_files.fill(full, Entries(), files, real, files))
    state = make_state(given.folder / "starts", {"wasmtime": given.wasmtime.engine})
    series = collect(
        {name: partial(_start, state, store) for name, store in (("full", full), ("empty", empty))},
        given.rounds(_ROUNDS),
        warm_up=given.rounds(2) - 1,
    )
    yield compare(
        "start of a daemon",
        f"with {files:,} artifacts in its host store",
        series["full"],
        "with none",
        series["empty"],
        START_GOAL,
    )


def _start(state: Path, store: Path) -> float:
    began = time.perf_counter()
    with Daemon(state, "--redis-url", "none", "--host-store-dir", str(store)):
        return time.perf_counter() - began
