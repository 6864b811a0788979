"""Compiles on a machine that other processes keep busy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.engine_process import EngineProcess
from bench.lab import BenchError, Daemon, engines_or_install, make_state
from bench.modules import Module
from bench.raw import COMPILE, RawStream, by_bytes
from bench.results import Row, compare
from bench.setting import Setting
from bench.timing import timed

_GROUP = "compile on a busy machine"
_AGAINST = "engine in-process, as busy"
_BUSY_FOR_EACH_CPU = 1
_BUSY_FOR_S = 300
_BUSY_LOOP = "import sys, time\nend = time.time() + int(sys.argv[1])\nwhile time.time() < end: pass"
_SETTLE_S = 0.5


def on_a_busy_machine(given: Setting) -> Iterator[Row]:
    """A cold compile beside a process for each CPU that never sleeps."""
    rounds = given.rounds(5)
    module, target = given.modules.medium, given.wasmtime
    request = by_bytes(module.wasm, target.engine.id)
    ours: list[float] = []
    theirs: list[float] = []
    with ExitStack() as stack:
        engine = stack.enter_context(EngineProcess(target.engine, target.triple, target.cpu))
        engines = {"wasmtime": engines_or_install()["wasmtime"]}
        flags = ("--redis-url", "none", "--workers", "1")
        daemon = stack.enter_context(Daemon(make_state(given.folder / "busy", engines), *flags))
        _compile(daemon, module, request)  # What only the first compile of a process costs.
        with _busy_machine():
            for _ in range(rounds):
                theirs.append(engine.measure("first", module.path))
                ours.append(_compile(daemon, module, request))
    yield compare(_GROUP, "one caller", ours, _AGAINST, theirs)


def _compile(daemon: Daemon, module: Module, request: bytes) -> float:
    with daemon.client() as client:
        client.evict(module_sha256=module.sha256)
    stream = RawStream(daemon.address, COMPILE)
    try:
        return timed(lambda: stream.drain(request))
    finally:
        stream.close()


@contextmanager
def _busy_machine() -> Iterator[None]:
    count = _BUSY_FOR_EACH_CPU * (os.cpu_count() or 1)
    command = [sys.executable, "-c", _BUSY_LOOP, str(_BUSY_FOR_S)]
    busy: list[subprocess.Popen[bytes]] = []
    try:
        busy += [subprocess.Popen(command) for _ in range(count)]
        time.sleep(_SETTLE_S)
        yield
        if any(each.poll() is not None for each in busy):
            raise BenchError("the machine was not kept busy for long enough")
    finally:
        for each in busy:
            each.kill()
            each.wait()
