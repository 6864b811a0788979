"""A daemon with small limits survives the modules of the catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e import wasm
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import jobs_of, workers_of
from tests.hostile.answers import (
    CLEAR_ANSWERS,
    ENGINES,
    EVERYWHERE,
    highest_memory_bytes,
    try_each,
)
from tests.hostile.catalogue import CATALOGUE, Hostile
from tests.sizes import FULL

LIMITS = (
    *("--compile-timeout-s", "2", "--compile-memory-bytes", "300MiB"),
    *("--max-artifact-bytes", "2MiB"),
)
# What was known of from the first.
KNOWN = ("nested-blocks", "live-locals", "many-functions")
# Half of them, those that are known among them: `make hostile` takes all, with more time.
SOME = {*KNOWN, "endless-vector", "many-instances", *(each.name for each in CATALOGUE[::2])}
TRIED = [
    *(each for each in CATALOGUE if FULL or each.name in SOME),
    # Its artifact is too large, and takes no time, however busy the machine is.
    Hostile("large-data", "data", lambda: wasm.with_data(3_000_000, 1)),
]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One worker for each engine, and no quarantine."""
    flags = [*LIMITS, "--workers", "1", "--redis-url", "none", "--quarantine-s", "0"]
    with Daemon(state_with(tmp_path / "state", *ENGINES), flags) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


def test_each_gets_a_clear_answer_and_the_daemon_serves_as_before(daemon: Daemon) -> None:
    """The engines beside each other, each with one module after the other."""
    workers = set(workers_of(daemon.pid))

    def try_all(engine: str) -> dict[str, str]:
        with daemon.client(max_attempts=1, timeout_s=60) as client:
            answers = zip(TRIED, try_each(client, engine, TRIED), strict=True)
            return {hostile.name: answer.said for hostile, answer in answers}

    with ThreadPoolExecutor(len(ENGINES)) as callers:
        answers = dict(zip(ENGINES, callers.map(try_all, ENGINES), strict=True))
    print(json.dumps(answers, indent=1))
    for given in answers.values():
        assert {name: said for name, said in given.items() if said not in CLEAR_ANSWERS} == {}
        # All limits are met, and more than one module is let through.
        assert set(given.values()) >= EVERYWHERE
        assert given["endless-vector"] == "MODULE_INVALID"
        assert all(given[name] in EVERYWHERE - {"OK"} for name in KNOWN)
    assert answers["wasmer-1.1.0"]["many-instances"] == "ENGINE_LACKS_FEATURE"
    assert set(workers_of(daemon.pid)) == workers
    assert jobs_of(daemon.pid) == []
    # Most of it are the modules, which its memory tier keeps.
    assert highest_memory_bytes(daemon.pid) < 300 * 2**20
    assert [line for line in daemon.log_lines if json.loads(line)["level"] == "error"] == []
