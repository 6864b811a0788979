"""Strangers cannot have an honest module quarantined by crowding the machine."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkiln import Client, WasmkilnError

from tests.e2e import wasm
from tests.e2e.daemon import Daemon
from tests.e2e.yardstick import slowness

# Twice what the honest module takes by itself, on this processor.
TIMEOUT_S = round(1.5 * slowness(), 2)
STRANGERS = 6
LIMITS = [
    *("--compile-timeout-s", str(TIMEOUT_S), "--workers", str(STRANGERS)),
    *("--redis-url", "none", "--max-module-bytes", "8MiB"),
]
HONEST, HONEST_ENGINE = wasm.busy_functions(7_000), "wasmtime-50.0.1"
ENDLESS_ENGINE = "wasmer-1.1.0"


def endless(tag: int) -> bytes:
    """A valid module that takes wasmer many times as long."""
    return wasm.nested_blocks(500_000) + wasm.section(0, b"\x08" + b"%08d" % tag)


@pytest.fixture
def daemon(state_dir: Path) -> Iterator[Daemon]:
    # Of a machine with more CPUs it gets two, so that the strangers crowd them.
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usual)[:2])
    try:
        running = Daemon(state_dir, LIMITS)
    finally:
        os.sched_setaffinity(0, usual)
    with running:
        yield running


@contextmanager
def strangers(daemon: Daemon) -> Iterator[None]:
    """Have endless modules compiled, another by each call, from connections of their own."""
    over = threading.Event()
    tags = itertools.count()

    def attack() -> None:
        with daemon.client(max_attempts=1) as client:
            while not over.is_set():
                compile_often(client, endless(next(tags)), ENDLESS_ENGINE, 1)

    with ThreadPoolExecutor(STRANGERS) as callers:
        attacks = [callers.submit(attack) for _ in range(STRANGERS)]
        try:
            yield
        finally:
            over.set()
    for one in attacks:
        one.result()


def compile_often(client: Client, module: bytes, engine: str, times: int) -> list[str]:
    """Return how each compile ended, "" for well."""
    ends = []
    for _ in range(times):
        try:
            client.compile(module, engine=engine, skip_cache_lookup=True)
            ends.append("")
        except WasmkilnError as failure:
            ends.append(failure.reason)
    return ends


def test_only_what_a_module_does_alone_has_it_quarantined(daemon: Daemon) -> None:
    """An endless one at its first time-out; at its second where other processes took its CPU."""
    module = endless(10**7)
    with daemon.client(max_attempts=1) as owner:
        with strangers(daemon):
            ends = compile_often(owner, HONEST, HONEST_ENGINE, 5)
            assert not owner.quarantined().modules
            crowded = compile_often(owner, module, ENDLESS_ENGINE, 2)
        assert ends.count("COMPILE_TIMEOUT") >= 2, ends
        assert set(ends) <= {"COMPILE_TIMEOUT", ""}
        assert crowded == ["COMPILE_TIMEOUT"] * 2
        alone = compile_often(owner, module, ENDLESS_ENGINE, 3)
        assert alone[-1] == "MODULE_QUARANTINED", alone
