"""Hostile code in the jobs of a real daemon: each attempt is refused, and nothing is left behind.

And each succeeds in a process that nothing confines, so that no attempt is refused only because
it is wrong.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import Client, CompilerCrashed, CompileTimeout

from tests.e2e import wasm
from tests.e2e.attempts import ATTEMPTS, MACHINES_REFUSE, Machine, machine_of
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.hostile_engine import HOSTILE, environment, module
from tests.e2e.processes import eventually, jobs_of, status_of, workers_of
from tests.e2e.programs import Installed, run

MIB = 2**20
MEMORY_BYTES = 400 * MIB
VERSIONS = {"the daemon's Python": "0.0.1", "CPython 3.10": "0.0.2"}
SECRET = "a-secret-of-the-daemon"


@dataclass
class Site:
    """A daemon whose engines are hostile, and what they may attack."""

    daemon: Daemon
    client: Client
    machine: Machine


@pytest.fixture(scope="module")
def site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serve the hostile engine in each of the interpreters that engines live in."""
    folder = tmp_path_factory.mktemp("hostile")
    state = state_with(folder / "state")
    old = next(str(e.interpreter.resolve()) for e in engines if e.name == "wasmer")
    for python, version in zip(("", old), VERSIONS.values(), strict=True):
        environment(state / "engines", python=python, version=version)
    flags = ["--redis-url", "none", "--workers", "1", "--compile-memory-bytes", str(MEMORY_BYTES)]
    # At debug the log has a line for each job that is killed.
    flags += ["--compile-cpu-s", "2", "--log-level", "debug"]
    with (
        Daemon(state, flags, {"SECRET": SECRET}) as daemon,
        daemon.client(max_attempts=1, timeout_s=120) as client,
    ):
        served = {engine.engine.id for engine in client.capabilities().engines}
        assert served == {f"wasmtime-{version}" for version in VERSIONS.values()}
        [key, *_] = [path for path in (state / "keys").rglob("*") if path.is_file()]
        with machine_of(folder, daemon.pid, key) as machine:
            yield Site(daemon, client, machine)
    assert daemon.process.returncode == 0


@pytest.fixture(params=VERSIONS)
def engine(request: pytest.FixtureRequest) -> str:
    return f"wasmtime-{VERSIONS[request.param]}"


def worker_of(daemon: Daemon, engine: str) -> int:
    """Return the one worker of an engine."""
    [found] = [
        pid
        for pid in workers_of(daemon.pid)
        if f"/{engine}/".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return found


def attempt(site: Site, engine: str, name: str, *arguments: object) -> dict[str, Any]:
    """Have the code in a job try something; return what it says of it."""
    artifact = site.client.compile(module(name, *arguments), engine=engine, skip_cache_lookup=True)
    said: dict[str, Any] = json.loads(artifact.bytes)
    return said


def refusal(site: Site, engine: str, name: str, *arguments: object) -> str:
    """Return what refused an attempt: an error's name, or the signal; empty if nothing did."""
    try:
        said = attempt(site, engine, name, *arguments)
    except CompilerCrashed as killed:
        return "SIGSYS" if killed.metadata["signal"] == "SIGSYS" else ""
    return str(said.get("refused", ""))


def test_a_job_is_refused_each_attempt(site: Site, engine: str) -> None:
    worker = worker_of(site.daemon, engine)
    folder = site.daemon.state_dir / "engines" / engine
    got = []
    for name, *arguments in ATTEMPTS:
        targets = site.machine.arguments(tuple(arguments), worker, folder)
        if not refusal(site, engine, str(name), *targets):
            got.append((name, *arguments))
        # A job is all that it has cost.
        assert worker_of(site.daemon, engine) == worker, (name, *arguments)
    assert got == []


# Each child stands for a job, and this process for the worker.
CONTROL = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import attempts
for number, (name, *arguments) in enumerate(json.loads(sys.argv[2])):
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert status == 0, (name, arguments)
        continue
    arguments = [os.getppid() if word == "WORKER" else word for word in arguments]
    try:
        assert attempts.BY_NAME[name](*arguments) is not None
    except (OSError, ValueError, MemoryError, RuntimeError):
        print(number, flush=True)
    os._exit(0)
"""


def test_without_confinement_it_could(tmp_path: Path) -> None:
    """But for what this machine refuses to everybody: there the control says nothing."""
    key = tmp_path / "signing.pem"
    key.write_text("a key")
    key.chmod(0o600)
    engine = environment(tmp_path / "engine")
    with machine_of(tmp_path, os.getpid(), key) as bare:
        asked = [
            [name, *bare.arguments(tuple(arguments), "WORKER", engine)]
            for name, *arguments in ATTEMPTS
        ]
        done = run(sys.executable, "-c", CONTROL, HOSTILE / "wasmtime", json.dumps(asked))
    assert done.returncode == 0, done.stderr
    refused = [ATTEMPTS[int(number)] for number in done.stdout.split()]
    print(f"this machine refuses to everybody: {refused}")
    assert [words for words in refused if words[0] not in MACHINES_REFUSE] == []


def test_the_next_job_finds_no_state_of_the_last(site: Site, engine: str) -> None:
    worker = worker_of(site.daemon, engine)
    assert attempt(site, engine, "leave_behind", "mark") == {"got": "left"}
    found = attempt(site, engine, "find")["got"]
    assert worker_of(site.daemon, engine) == worker
    environ = found.pop("environ")
    assert found == {"environment": None, "module": None, "standard library": None, "threads": 1}
    # Nor anything of what the daemon was started with.
    assert SECRET not in environ.values()
    assert environ.keys() <= {
        *("WASMKILN_DAEMON_PID", "LC_ALL", "RUST_BACKTRACE", "PYTHONDONTWRITEBYTECODE"),
        "MALLOC_ARENA_MAX",
        *("RAYON_NUM_THREADS", "WASMKILN_JOB_UID"),
    }


def test_a_job_has_its_socket_and_its_streams_and_nothing_else(site: Site, engine: str) -> None:
    assert attempt(site, engine, "descriptors") == {"got": [0, 1, 2, 3]}


def test_memory_above_the_limit_is_not_to_be_had(site: Site, engine: str) -> None:
    size = MEMORY_BYTES // 4
    assert attempt(site, engine, "fill_memory", size) == {"got": size}
    assert attempt(site, engine, "fill_memory", 2 * MEMORY_BYTES).keys() == {"refused"}


def test_threads_for_every_cpu_start(site: Site, engine: str) -> None:
    # A module of 1 MB gets all of MEMORY_BYTES at once, and a small one less.
    padded = module("exhaust_threads", 128) + b" " * MIB
    artifact = site.client.compile(padded, engine=engine)
    assert json.loads(artifact.bytes) == {"got": 128}


def test_cpu_time_runs_out(site: Site, engine: str) -> None:
    worker = worker_of(site.daemon, engine)
    with pytest.raises(CompileTimeout):
        attempt(site, engine, "burn_cpu")
    assert worker_of(site.daemon, engine) == worker
    assert attempt(site, engine, "find")["got"]


def test_a_job_that_breaks_out_is_killed_and_named(site: Site, engine: str) -> None:
    logged = len(site.daemon.log_lines)
    with pytest.raises(CompilerCrashed) as killed:
        attempt(site, engine, "fork", "again")
    assert killed.value.metadata["signal"] == "SIGSYS"
    words = "a job was killed for a system call that no compiler makes"
    digest = wasm.digest(module("fork", "again"))
    told = {"event": words, "engine": engine, "module": digest}

    def named() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in site.daemon.log_lines[logged:]]
        return [line for line in lines if told.items() <= line.items()]

    eventually(named, "the log does not tell of it")


def test_an_abort_is_an_abort(site: Site, engine: str) -> None:
    """A job signals itself: the first process of a namespace could not."""
    with pytest.raises(CompilerCrashed) as killed:
        attempt(site, engine, "abort")
    assert killed.value.metadata["signal"] == "SIGABRT"


def test_what_the_kernel_says_of_a_job(site: Site, engine: str) -> None:
    def score_adj(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    with ThreadPoolExecutor(1) as caller:
        # A module of its own: one that ran out of its time before is refused at once.
        call = caller.submit(attempt, site, engine, "use_cpu", 1.5)
        eventually(lambda: len(jobs_of(site.daemon.pid)) == 1, "no job started")
        [job] = jobs_of(site.daemon.pid)
        eventually(lambda: status_of(job)["Seccomp_filters"] == "2", "it was not sealed")
        assert {status_of(job)[name] for name in ("CapEff", "CapPrm", "CapInh")} == {"0" * 16}
        assert Path(f"/proc/{job}/fd/0").readlink() == Path("/dev/null")
        limits = Path(f"/proc/{job}/limits").read_text()
        for what in ("core file size", "file size", "locked memory", "msgqueue size"):
            line = next(line for line in limits.splitlines() if line.startswith(f"Max {what} "))
            assert line.split()[-3:-1] == ["0", "0"], line
        # Without memory it kills jobs before anybody else.
        assert score_adj(job) == score_adj(worker_of(site.daemon, engine)) == 1000
        assert call.result() == {"got": 1.5}
    assert score_adj(site.daemon.pid) < 1000
