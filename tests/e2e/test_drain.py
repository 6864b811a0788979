"""Ending in good order: by signal, by Drain, and in a hurry."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from wasmkiln import Artifact, JobEnded, ServerDraining

from tests.e2e import wasm
from tests.e2e.daemon import Daemon, RedisDaemon, reload
from tests.e2e.grpcurl import Grpcurl
from tests.e2e.processes import embedded, eventually, jobs_of, send, workers_and_jobs
from tests.e2e.programs import WASMKILN, begin_to_serve, run
from tests.e2e.test_daemon import get
from tests.servers.redis_server import binary_of, redis_server

ENDLESS = wasm.nested_blocks(1_000_000)
SOME_SECONDS = wasm.nested_blocks(40_000)
NO_REDIS = ["--redis-url", "none", "--workers", "1"]
# More than a job takes on a machine that is slow and busy.
PATIENT = [*NO_REDIS, "--shutdown-grace-s", "150"]


@contextmanager
def compiling(daemon: Daemon, module: bytes) -> Iterator[Future[Artifact]]:
    """A call that the daemon is at work on."""
    with daemon.client(max_attempts=1) as client, ThreadPoolExecutor(1) as caller:
        call = caller.submit(client.compile, module)
        eventually(lambda: client.stats().busy_workers, "no job started")
        yield call


def has_open(pid: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(fd.readlink().name == name for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.parametrize("how", ["SIGTERM", "Drain"])
def test_running_calls_finish_and_new_ones_are_refused(lean_state_dir: Path, how: str) -> None:
    with Daemon(lean_state_dir, PATIENT) as daemon, daemon.client(max_attempts=1) as client:
        with compiling(daemon, SOME_SECONDS) as running:
            if how == "Drain":
                answer = client.drain()
                assert (answer.calls, answer.flights) == (1, 1)
                assert 140 < answer.grace.seconds <= 150
            else:
                daemon.process.send_signal(signal.SIGTERM)
                daemon.wait_for_log("draining")
            # By the time of the answer, not some time later.
            assert not running.done()
            assert client.health() == "NOT_SERVING"
            assert get(f"{daemon.admin_url}/readyz") == (503, "draining\n")
            with pytest.raises(ServerDraining):
                client.compile(wasm.adder(31))
            if how == "Drain":
                # A container's supervisor signals as soon as its hook, which drained, is done:
                # that is the first signal, and hurries nobody.
                daemon.process.send_signal(signal.SIGTERM)
                daemon.wait_for_log("stopping")
            assert running.result().header.size_bytes
        assert daemon.process.wait(120) == 0
    assert "given up" not in daemon.log


def test_what_outlives_the_grace_is_told_so(lean_state_dir: Path) -> None:
    with Daemon(lean_state_dir, NO_REDIS) as daemon, daemon.client(max_attempts=1) as client:
        with (
            compiling(daemon, ENDLESS) as running,
            ThreadPoolExecutor(1) as caller,
            daemon.client(max_attempts=1) as another,
        ):
            waiting = caller.submit(another.load, wasm.adder(32))  # No flight, and in the queue.
            eventually(lambda: client.stats().queue_depth, "nobody waits")
            assert len(jobs_of(daemon.pid)) == 1
            assert client.drain(1).calls == 2
            for call in (running, waiting):
                with pytest.raises(ServerDraining):
                    call.result()
        assert daemon.process.wait(120) == 0
        # Its job is killed, and dies once it gets a CPU.
        eventually(lambda: not workers_and_jobs(daemon.pid), "a job lives on")
    assert "grace is over: giving up calls" in daemon.log


def test_a_signal_after_all_is_stopped_is_no_failure(lean_state_dir: Path) -> None:
    """A supervisor may signal while the drained daemon is ending."""
    with Daemon(lean_state_dir, NO_REDIS) as daemon:
        with daemon.client() as client:
            client.drain(0)
        while daemon.process.poll() is None:
            # It is gone some 20 ms after this line.
            if any('"stopped"' in line for line in list(daemon.log_lines)):
                daemon.process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert daemon.process.returncode == 0


def test_a_second_signal_hurries(lean_state_dir: Path) -> None:
    with Daemon(lean_state_dir, NO_REDIS) as daemon, compiling(daemon, ENDLESS) as running:
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for_log("draining")
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(ServerDraining):
            running.result()
        assert daemon.process.wait(120) == 0


def test_a_second_signal_waits_for_no_embedded_server_either(lean_state_dir: Path) -> None:
    with Daemon(lean_state_dir, ["--workers", "1"]) as daemon:
        server = embedded(lean_state_dir)
        send(signal.SIGSTOP, server)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for_log("draining")
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(1)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(120) == 0
    send(signal.SIGCONT, server)
    eventually(lambda: not embedded(lean_state_dir), "the embedded server did not end by itself")


def test_a_signal_while_starting_is_heard(lean_state_dir: Path) -> None:
    """The embedded server waits for a lock that the test holds."""
    folder = lean_state_dir / "redis"
    folder.mkdir(mode=0o700)
    with (folder / "guardian.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = begin_to_serve(lean_state_dir)
        # Past the engines, into the wait for the server.
        eventually(lambda: has_open(process.pid, "guardian.lock"), "it does not wait")
        process.send_signal(signal.SIGHUP)  # Which would end a process that does not expect it.
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "is ready" not in out
    assert '"stopped"' in err


def test_cache_writes_are_flushed(lean_state_dir: Path) -> None:
    with RedisDaemon(lean_state_dir, ["--workers", "1"]) as daemon, daemon.client() as client:
        headers = []
        for tag in range(40, 140):  # Until the drain finds something that is not written yet.
            headers.append(client.compile(wasm.adder(tag)).header)
            if len(headers) >= 6 and client.stats().pending_writes:
                break
        else:
            raise AssertionError("nothing waits to be written")
        client.drain()
        assert daemon.process.wait(120) == 0
    assert "given up" not in daemon.log
    with RedisDaemon(lean_state_dir, ["--workers", "1"]) as daemon, daemon.client() as client:
        for header in headers:
            assert client.compile(header.module_sha256).header.origin == 2


def test_a_redis_that_is_down_holds_nobody_up(lean_state_dir: Path, tmp_path: Path) -> None:
    with redis_server(binary_of("valkey"), tmp_path / "server") as server:
        environ = {"WASMKILN_REDIS_URL": server.url}
        with (
            Daemon(lean_state_dir, ["--workers", "1"], environ) as daemon,
            daemon.client() as client,
        ):
            server.process.kill()
            server.process.wait()
            client.compile(wasm.adder(47))
            daemon.wait_for_log("tier is down")
            assert client.stats().pending_writes
            assert daemon.stop() == 0
    events = [json.loads(line) for line in daemon.log_lines]
    assert [event["event"] for event in events].count("cache writes given up") == 1


def test_every_watcher_of_the_health_hears_of_it(lean_state_dir: Path) -> None:
    """Also watchers that stay when another leaves."""
    asked = health_pb2.HealthCheckRequest(service="wasmkiln.v1.ModuleService")
    with Daemon(lean_state_dir, NO_REDIS) as daemon, contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(daemon.address)) for _ in range(3)]
        streams = [health_pb2_grpc.HealthStub(each).Watch(asked, timeout=120) for each in channels]
        assert [next(stream).status for stream in streams] == [1, 1, 1]
        streams[0].cancel()
        daemon.process.send_signal(signal.SIGTERM)
        assert [next(stream).status for stream in streams[1:]] == [2, 2]
        assert daemon.process.wait(120) == 0


def test_a_drain_is_undone_while_calls_run(lean_state_dir: Path) -> None:
    asked = health_pb2.HealthCheckRequest()
    with (
        Daemon(lean_state_dir, PATIENT) as daemon,
        daemon.client(max_attempts=1) as client,
        grpc.insecure_channel(daemon.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(asked, timeout=120)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert not client.undo_drain().undone  # It does not drain.
        with compiling(daemon, ENDLESS) as running:
            assert 140 < client.drain().grace.seconds <= 150
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(ServerDraining):
                client.find_missing([wasm.digest(ENDLESS)])
            done = run(WASMKILN, "drain", "--undo", "--address", daemon.address)
            assert done.stdout == "the daemon accepts calls again\n"
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            assert client.health() == "SERVING"
            assert get(f"{daemon.admin_url}/readyz") == (200, "ready\n")
            assert client.find_missing([wasm.digest(ENDLESS)])
            assert reload(daemon)  # What changes while it runs still does.
            # Nothing of a grace is left that was undone.
            client.drain(4)
            assert client.undo_drain().undone
            time.sleep(4.5)
            assert not running.done()
            assert client.drain().grace.seconds > 100
            assert client.undo_drain().undone
            [job] = client.jobs().jobs
            client.end_job(job.id)
            with pytest.raises(JobEnded):
                running.result(60)
        assert client.compile(wasm.adder(49)).bytes
        client.drain()
        assert daemon.process.wait(120) == 0
    assert daemon.log.count('"drain undone"') == 3
    assert "given up" not in daemon.log


def test_what_a_signal_or_the_grace_ends_is_not_undone(lean_state_dir: Path) -> None:
    with Daemon(lean_state_dir, PATIENT) as daemon, daemon.client(max_attempts=1) as client:
        with compiling(daemon, ENDLESS) as running:
            client.drain()
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for_log("stopping")
            with pytest.raises(ServerDraining):
                client.undo_drain()
            assert client.health() == "NOT_SERVING"
            client.drain(0)
            with pytest.raises(ServerDraining):
                running.result(60)
        assert daemon.process.wait(120) == 0
    assert "drain undone" not in daemon.log


def test_each_call_of_a_draining_daemon_by_grpcurl(lean_state_dir: Path) -> None:
    with Daemon(lean_state_dir, NO_REDIS) as daemon, compiling(daemon, ENDLESS) as running:
        grpcurl, drain = Grpcurl(daemon.address), "wasmkiln.v1.AdminService/Drain"
        # One that is no duration ends nothing.
        assert grpcurl.refused(drain, {"grace": "-1s"}).code == "InvalidArgument"
        [answer] = grpcurl.json(drain, {"grace": "100s"})
        assert (answer["calls"], answer["flights"]) == (1, 1)
        # An operator sees how the drain goes.
        [stats] = grpcurl.json("wasmkiln.v1.ModuleService/Stats", {})
        assert stats["busy_workers"] == 1
        [capabilities] = grpcurl.json("wasmkiln.v1.ModuleService/GetCapabilities", {})
        assert [one["engine"]["id"] for one in capabilities["engines"]] == ["wasmer-1.1.0"]
        module = base64.b64encode(wasm.adder(48)).decode()
        for method, request in (
            ("ModuleService/Load", {"module": module}),
            ("ModuleService/Compile", {"module": module}),
            ("ModuleService/FindMissing", {}),
            ("AdminService/Evict", {"all": True}),
        ):
            done = grpcurl(f"wasmkiln.v1.{method}", request=request)
            assert done.returncode != 0
            assert "Code: Unavailable" in done.stderr
            assert '"reason":"SERVER_DRAINING"' in done.stderr.replace(" ", "")
        for service in ("", "wasmkiln.v1.ModuleService", "wasmkiln.v1.AdminService"):
            [health] = grpcurl.json("grpc.health.v1.Health/Check", {"service": service})
            assert health == {"status": "NOT_SERVING"}
        # Of several deadlines the earliest counts.
        with daemon.client(max_attempts=1) as client:
            assert client.drain(3600).grace.seconds <= 100
            assert client.drain(60).grace.seconds <= 60
            assert client.drain(600).grace.seconds <= 60
            assert client.drain().grace.seconds <= 30
            client.drain(0)
        with pytest.raises(ServerDraining):
            running.result()
        assert daemon.process.wait(120) == 0
