"""What the status page is drawn from: small, and without paths, commands and messages."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
from wasmkilnd.engines.job import JobOrder
from wasmkilnd.engines.pool import Job
from wasmkilnd.lifecycle.readiness import Readiness, status_json
from wasmkilnd.model import (
    CacheKey,
    Isolation,
    IsolationLayer,
    LayerState,
    RemoteStatus,
    Strike,
    TierUsage,
    UnservedEngine,
)
from wasmkilnd.telemetry.metrics import EngineUsage, Metrics
from wasmkilnd.waits.flights import Waiter, Waiters

from tests.unit.engines.limits import LIMITS

ENGINE = "wasmtime-50.0.1"
SECRET = "/var/lib/wasmkiln/engines; run `chmod go-w /var/lib/wasmkiln`"
ISOLATION = Isolation(
    [
        IsolationLayer("seccomp", LayerState.ENFORCED, SECRET),
        IsolationLayer("landlock", LayerState.PARTIAL, SECRET),
    ],
    {"open a file": True},
)


class Parts:
    """A daemon that is none."""

    def __init__(self) -> None:
        self.metrics = Metrics("1.2.3")
        self.metrics.add_engine(ENGINE)
        gauges = self.metrics.gauges
        gauges.engines[ENGINE] = lambda: EngineUsage(workers=2, busy=1, expected_wait_s=1.5)
        gauges.remote = lambda: RemoteStatus("embedded", up=True)
        gauges.tiers["memory"] = lambda: TierUsage(3, 97 * 2**20, 100 * 2**20)
        self.readiness = Readiness()
        self.advisories = [SimpleNamespace(text="TEST-1: a guest can leave")]
        self.strikes: list[Strike] = []
        self.jobs: list[tuple[str, str, Job]] = []
        self.engines = [SimpleNamespace(id=ENGINE, pool=SimpleNamespace(why_no_worker=""))]
        self.serving: Any
        self.serving = SimpleNamespace(
            registry=SimpleNamespace(served=self.engines, default=ENGINE),
            unserved=[],
            isolation=SimpleNamespace(
                summary="confined by seccomp", required=True, of=lambda _: ISOLATION
            ),
            advisories=SimpleNamespace(current=SimpleNamespace(of=lambda _: self.advisories)),
        )
        self.readiness.started(
            self.serving, lambda: (gauges.remote(), RemoteStatus("none", up=False))
        )

    def raw(self) -> bytes:
        tenants: Any = SimpleNamespace(
            opened={"": None},
            known_in_quarantine=lambda: self.strikes,
            jobs=lambda _: iter(self.jobs),
        )
        return status_json(self.metrics, self.readiness, self.serving, tenants, "")

    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.raw())
        return told


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_it_names_no_path_no_command_and_no_message(parts: Parts) -> None:
    """Whoever can read it on this machine learns of such an engine that it is not served."""
    broken = "the self-test failed: 1 is not 2"
    parts.serving.unserved = [
        UnservedEngine("wasmer-1.1.0", SECRET),
        UnservedEngine("wasmer-1.0.0", broken),
    ]
    parts.engines[0].pool.why_no_worker = SECRET
    parts.metrics.gauges.remote = lambda: RemoteStatus("embedded", up=False, detail=SECRET)
    parts.strikes = [Strike(CacheKey("a" * 64, "f" * 64), ENGINE, "COMPILE_TIMEOUT", SECRET, 2, 9)]
    told = parts.told()
    assert told["unserved"] == {"wasmer-1.1.0": "", "wasmer-1.0.0": broken}
    assert (told["ready"], told["state"]) == (False, "no engine works")
    assert "chmod" not in json.dumps(told)
    assert "/var/lib" not in json.dumps(told)
    _, ready = parts.readiness.now()
    unsaid = "the log of the daemon says why"
    assert ready.split("; ") == [
        "no engine works",
        f"wasmer-1.1.0 is not served: {unsaid}",
        f"wasmer-1.0.0 is not served: {broken}",
        f"{ENGINE} has no worker: {unsaid}",
        "Redis is down",
    ]


def test_it_stays_small(parts: Parts) -> None:
    """With all that callers can fill it with."""
    for number in range(100):
        module = f"{number:02}" + "<" * 1000
        parts.metrics.compile_ended(module, ">" * 1000, "", "COMPILER_CRASHED", 1.0)
    key = CacheKey("0" * 64, "f" * 64)
    parts.strikes = [Strike(key, ENGINE, "COMPILE_TIMEOUT", "m" * 5000, 9, 9.0)] * 10_000
    parts.jobs = [("team", ENGINE, job("team/token:" + "x" * 5000))] * 300
    told = parts.told()
    assert (len(told["quarantine"]), len(told["jobs"]), told["more_jobs"]) == (50, 50, 250)
    assert len(parts.raw()) < 60_000


def job(*callers: str) -> Job:
    order = JobOrder({"op": "compile"}, LIMITS, b"", "a" * 64)
    waiters = Waiters(waiting=Counter(map(Waiter, callers)))
    return Job(order, waiters, id="5ff1", memory_bytes=2**30, granted=cast("Any", None))


def test_jobs_that_run_come_first_and_who_waits_is_a_number(parts: Parts) -> None:
    runs, waits = job("team/token:ci", "team/token:web"), job("/token:ci")
    runs.worker, runs.queued_s = cast("Any", object()), 0.0
    runs.asked_s -= 60.0
    parts.jobs = [("", ENGINE, waits), ("team", ENGINE, runs)]
    first, second = parts.told()["jobs"]
    assert float(first.pop("ran").removesuffix("s")) >= 60.0
    assert first == {
        "id": "5ff1",
        "namespace": "team",
        "callers": 2,
        "module_sha256": "a" * 64,
        "engine": ENGINE,
        "work": "compile",
        "waited": "0s",
        "memory_bytes": str(2**30),
    }
    assert (second["callers"], "ran" in second) == (1, False)
    assert "token" not in parts.raw().decode()
