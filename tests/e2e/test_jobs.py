"""Operators see the jobs of their namespace, and end one: who waits for it learns why."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln import Client, JobEnded
from wasmkiln.v1 import admin_service_pb2 as admin

from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, Daemon, fresh_state
from tests.e2e.fixtures import a_valkey
from tests.e2e.processes import busy_job, eventually, jobs_of, parent_of, stopped, workers_of
from tests.e2e.programs import WASMKILN, run
from tests.e2e.tenancy import House, house
from tests.e2e.test_daemon import get
from tests.servers.redis_server import RedisServer

WASMER = "wasmer-1.1.0"
# Valid, and keeps its compiler busy for longer than anybody waits.
SLOW = wasm.nested_blocks(1_000_000)
SLOW_COMPONENT = wasm.component(wasm.many_functions(600_000))

valkey = a_valkey()


@pytest.fixture
def tenants(engines: object, tmp_path: Path) -> Iterator[House]:
    """Two tenants and an operator of the whole daemon; each engine has one worker."""
    audit = str(tmp_path / "audit.jsonl")
    with house(tmp_path / "state", REDIS_URL="none", AUDIT_FILE=audit) as running:
        yield running


@contextmanager
def asking() -> Iterator[Callable[..., Future[Any]]]:
    """Make calls that last, without waiting for them."""
    callers = ThreadPoolExecutor(8)
    try:
        yield callers.submit
    finally:
        callers.shutdown(wait=False)  # Of a test that fails, they end with their clients.


def jobs(client: Client, count: int) -> list[admin.Job]:
    """Wait until the client sees so many jobs; return them."""
    found: list[admin.Job] = []

    def seen() -> bool:
        found[:] = client.jobs().jobs
        return len(found) == count

    eventually(seen, f"there are not {count} jobs")
    return found


def ended(call: Future[Any]) -> JobEnded:
    """Wait for a call that fails since its job was ended."""
    with pytest.raises(JobEnded) as failure:
        call.result(60)
    return failure.value


def wait_for_its_end(job: int) -> None:
    """Its worker takes it along, as soon as the kernel has told it."""
    eventually(lambda: not parent_of(job), "the job lives on")


def test_a_tenants_operator_sees_and_ends_the_jobs_of_the_tenant_alone(tenants: House) -> None:
    a, b, ops = (tenants.client(who, max_attempts=1) for who in ("a", "b", "ops"))
    other = tenants.client("b", max_attempts=1)
    with asking() as ask:
        slow = ask(a.compile, SLOW)
        job = busy_job(tenants.daemon.pid)
        [worker] = workers_of(tenants.daemon.pid)
        waits = ask(other.compile, wasm.adder(1))
        [of_b] = jobs(b, 1)
        [of_a] = jobs(a, 1)

        assert (of_a.namespace, [*of_a.callers]) == ("team-a", ["token:a"])
        assert (of_a.module_sha256, of_a.engine) == (wasm.digest(SLOW), WASMER)
        assert (of_a.work, of_b.work) == ("compile", "compile")
        assert of_a.memory_bytes > len(SLOW)
        assert of_a.ran.ToTimedelta() > of_a.waited.ToTimedelta()
        assert (of_b.namespace, [*of_b.callers]) == ("team-b", ["token:b"])
        assert not of_b.HasField("ran")
        assert of_b.waited.ToTimedelta().total_seconds() > 0
        assert [each.id for each in ops.jobs().jobs] == [of_a.id, of_b.id]

        # Another's is as one that there is not.
        for client, wrong in ((b, of_a.id), (a, of_b.id), (ops, "no"), (ops, "")):
            assert not client.end_job(wrong).HasField("job")
        assert not slow.done()
        assert parent_of(job) == worker

        told = a.end_job(of_a.id)
        assert (told.job.id, told.job.module_sha256) == (of_a.id, wasm.digest(SLOW))
        failure = ended(slow)
        assert failure.code is grpc.StatusCode.ABORTED
        assert failure.metadata == {"engine": WASMER}
        assert "operator" in str(failure)
        # What waited is served, by another worker; and nothing of the job is left.
        assert waits.result(60).bytes
        wait_for_its_end(job)
        assert workers_of(tenants.daemon.pid) != [worker]
        assert not ops.jobs().jobs
        assert not a.end_job(of_a.id).HasField("job")

        # The module is not refused: it is compiled again.
        assert not a.quarantined().modules
        again = ask(a.compile, SLOW)
        ops.end_job(jobs(a, 1)[0].id)
        ended(again)
        assert not a.quarantined().modules
    audited(tenants, of_a)


def audited(tenants: House, job: admin.Job) -> None:
    lines = (tenants.daemon.state_dir.parent / "audit.jsonl").read_text().splitlines()
    acts = [line for line in map(json.loads, lines) if line.get("method")]
    mine = [line for line in acts if line["method"].endswith("/EndJob")]
    assert [line["ended"] for line in mine] == [False] * 4 + [True, False, True]
    who = {"event": "admin", "identity": "token:a", "namespace": "team-a"}
    about = {"job": job.id, "module": job.module_sha256, "engine": WASMER}
    assert {**who, **about}.items() <= mine[4].items()
    failed = [line for line in acts if line.get("reason") == "JOB_ENDED"]
    assert {line["method"].rpartition("/")[2] for line in failed} == {"Compile"}
    assert {line["module"] for line in failed} == {job.module_sha256}
    assert metric(tenants, "compiles_total", engine=WASMER, outcome="job_ended") == 2


def metric(tenants: House, name: str, **labels: str) -> float:
    return tenants.daemon.metric(name, token=tenants.tokens["ops"], **labels)


def test_a_job_that_waits_is_ended_without_a_worker(tenants: House) -> None:
    a, b, ops = (tenants.client(who, max_attempts=1) for who in ("a", "b", "ops"))
    with asking() as ask:
        slow = ask(a.compile, SLOW)
        busy_job(tenants.daemon.pid)
        [worker] = workers_of(tenants.daemon.pid)
        # Two calls wait for one job.
        waiting = [ask(client.compile, wasm.adder(2)) for client in (b, tenants.client("b"))]
        eventually(lambda: metric(tenants, "calls") == 3, "not both calls are there")
        jobs(ops, 2)
        last = ask(tenants.client("b").load, wasm.adder(3))
        _, first, second = jobs(ops, 3)
        assert (first.module_sha256, [*first.callers]) == (wasm.digest(wasm.adder(2)), ["token:b"])
        assert second.work == "validate"
        assert b.end_job(first.id).job.id == first.id
        for call in waiting:
            ended(call)
        assert workers_of(tenants.daemon.pid) == [worker]
        assert not slow.done()
        assert [each.id for each in jobs(b, 1)] == [second.id]
        ops.end_job(jobs(a, 1)[0].id)
        ended(slow)
        assert last.result(60).sha256 == second.module_sha256
        # It was the job that was ended, not the module.
        assert b.compile(wasm.adder(2)).bytes


@pytest.mark.parametrize("call", ["compile", "load"])
def test_a_job_that_does_not_get_on_is_ended_and_condemns_nobody(
    engines: object, tmp_path: Path, call: str
) -> None:
    """It is stopped, and so it would neither use up its CPU time nor end by itself."""
    state = fresh_state(tmp_path / "state", engines=TWO_ENGINES)
    with (
        Daemon(state, ["--redis-url", "none"]) as daemon,
        daemon.client(max_attempts=1) as client,
        asking() as ask,
    ):
        for _ in range(2):
            slow = ask(getattr(client, call), SLOW_COMPONENT, engine="wasmtime")
            job = busy_job(daemon.pid)
            assert stopped(job)
            [listed] = client.jobs().jobs
            work = "compile" if call == "compile" else "validate"
            assert (listed.work, listed.engine) == (work, "wasmtime-50.0.1")
            client.end_job(listed.id)
            ended(slow)
            wait_for_its_end(job)
        assert not client.quarantined().modules
        assert client.compile(wasm.adder(4), engine="wasmtime").bytes
    assert "Traceback" not in daemon.log


def test_who_holds_up_a_drain_is_seen_and_ended(lean_state_dir: Path) -> None:
    flags = ["--redis-url", "none", "--shutdown-grace-s", "150"]
    with (
        Daemon(lean_state_dir, flags) as daemon,
        daemon.client(max_attempts=1) as client,
        asking() as ask,
    ):
        slow = ask(client.compile, SLOW)
        busy_job(daemon.pid)
        client.drain()
        # A command line as an operator has it, and the status page's list.
        at = ("--address", daemon.address)
        [job] = json.loads(run(WASMKILN, "jobs", "--json", *at).stdout)["jobs"]
        assert (job["work"], job["module_sha256"]) == ("compile", wasm.digest(SLOW))
        [listed] = json.loads(get(f"{daemon.admin_url}/status.json")[1])["jobs"]
        assert (listed["id"], listed["callers"]) == (job["id"], 1)
        assert job["id"] in run(WASMKILN, "jobs", *at).stdout
        done = run(WASMKILN, "jobs", "end", job["id"], *at)
        assert done.stdout == f"ended: compile {wasm.digest(SLOW)} with {WASMER}\n"
        ended(slow)
        assert daemon.process.wait(60) == 0


def test_another_daemon_that_waits_for_the_artifact_takes_over(
    engines: object, tmp_path: Path, valkey: RedisServer
) -> None:
    states = [fresh_state(tmp_path / name, engines=[WASMER]) for name in ("one", "other")]
    environ = {"WASMKILN_REDIS_URL": valkey.url}
    with (
        Daemon(states[0], environ=environ) as one,
        Daemon(states[1], environ=environ) as other,
        one.client(max_attempts=1) as here,
        other.client(max_attempts=1) as there,
        asking() as ask,
    ):
        first = ask(here.compile, SLOW)
        os.kill(busy_job(one.pid), signal.SIGSTOP)
        second = ask(there.compile, SLOW)
        eventually(lambda: other.metric("flights") == 1, "the other does not wait")
        assert not jobs_of(other.pid)
        here.end_job(jobs(here, 1)[0].id)
        ended(first)
        there.end_job(jobs(there, 1)[0].id)
        ended(second)
        assert not here.quarantined().modules
