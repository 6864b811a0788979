"""Whole daemons with many artifacts in memory: a call's time, and the daemon's memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from wasmkiln.v1 import types_pb2
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.model import CompileSpec, EngineIdentity

from bench.lab import BenchError, Daemon, make_state
from bench.machine import resident_bytes
from bench.raw import COMPILE, RawStream, by_digest, origin
from bench.results import Row, compare
from bench.scale.entries import Entries, write_spec
from bench.scale.filled import fill
from bench.scale.operations import COST_GOAL, resident_row
from bench.setting import Setting
from bench.timing import collect, timed

_CALLS = 100
_ROUNDS, _QUICK_ROUNDS = 12, 4


def whole_daemons(given: Setting) -> Iterator[Row]:
    """Hits among few and among many artifacts, by turns."""
    least, most = given.sizes[0], given.sizes[-1]
    entries, spec_file = _entries_of(given)
    entry_bytes = _bytes_of_one(entries)
    with ExitStack() as stack:
        daemons = {
            count: stack.enter_context(_daemon(given, count, count * entry_bytes, spec_file))
            for count in (least, most)
        }
        streams = {}
        for count, daemon in daemons.items():
            streams[count] = RawStream(daemon.address, COMPILE)
            stack.callback(streams[count].close)

        def hits(count: int) -> float:
            numbers = random.choices(range(count), k=_CALLS)
            engine_id = given.wasmtime.engine.id
            requests = [by_digest(entries.key(each).module_sha256, engine_id) for each in numbers]
            answers: list[list[bytes]] = []
            stream = streams[count]
            seconds = timed(
                lambda: answers.extend(stream.messages(request) for request in requests)
            )
            if any(origin(answer) != types_pb2.ORIGIN_MEMORY for answer in answers):
                raise BenchError("a made-up artifact was not in the daemon's memory")
            return seconds / _CALLS

        series = collect(
            {str(count): lambda count=count: hits(count) for count in daemons},  # type: ignore[misc]
            given.rounds(_ROUNDS, _QUICK_ROUNDS),
            warm_up=1,
        )
        resident = resident_bytes(daemons[most].pid)
    yield compare(
        "call of a daemon",
        f"memory hit among {most:,} artifacts",
        series[str(most)],
        f"among {least:,}",
        series[str(least)],
        COST_GOAL,
    )
    yield resident_row(f"a daemon with {most:,} artifacts in memory", resident, most * entry_bytes)


def _entries_of(given: Setting) -> tuple[Entries, Path]:
    """Return entries that a daemon takes for its own by default, and the file with their spec."""
    with given.daemon.client() as client:
        header = client.compile(given.modules.small.path, engine=given.wasmtime.engine.id).header
    spec = CompileSpec(
        EngineIdentity(
            header.engine.name,
            header.engine.version,
            header.engine.core_version,
            header.engine.compiler,
        ),
        header.target,
        header.cpu,
        dict(header.settings),
        {},
        header.fingerprint,
    )
    file = given.folder / "spec.json"
    write_spec(spec, file)
    return Entries(spec), file


def _bytes_of_one(entries: Entries) -> int:
    tier = MemoryTier(1 << 20)
    asyncio.run(fill(tier, entries, 1))
    return tier.usage().bytes


def _daemon(given: Setting, count: int, memory_bytes: int, spec_file: Path) -> Daemon:
    state = make_state(given.folder / f"filled-{count}", {"wasmtime": given.wasmtime.engine})
    program = ("bench.scale.filled", str(count), str(spec_file))
    flags = ("--memory-bytes", str(memory_bytes), "--redis-url", "none")
    return Daemon(state, *flags, program=program)
