"""Confinement in a whole daemon: the real engines' workers, and what callers and operators see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wasmkiln import Client
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.daemon import Daemon
from tests.e2e.hostile_engine import environment, module
from tests.e2e.processes import status_of, workers_of

LAYERS = {"namespaces", "root", "landlock", "privileges", "limits", "seccomp"}


@contextmanager
def daemon_with_a_hostile_engine(state_dir: Path, *flags: str) -> Iterator[Daemon]:
    """A daemon that serves wasmtime 50, and the hostile engine as wasmtime 0.0.1.

    The kernel refuses seccomp to the workers of the latter.
    """
    (state_dir / "engines" / "wasmer-1.1.0").unlink()
    environment(state_dir / "engines", ["seccomp"])
    with Daemon(state_dir, ["--redis-url", "none", "--workers", "1", *flags]) as daemon:
        yield daemon


def layers_of(engine: pb.EngineCapabilities) -> dict[str, pb.IsolationLayer]:
    return {layer.name: layer for layer in engine.isolation.layers}


def test_capabilities_and_banner_tell_how_each_engine_is_confined_and_the_kernel_says_the_same(
    daemon: Daemon, client: Client
) -> None:
    capabilities = client.capabilities()
    assert capabilities.isolation_required
    assert len(capabilities.engines) == 3
    for engine in capabilities.engines:
        assert engine.isolation.holds
        assert layers_of(engine).keys() == LAYERS
        assert all(layer.state and layer.detail for layer in engine.isolation.layers)
        assert len(engine.isolation.attempts) == 12
        assert all(attempt.refused for attempt in engine.isolation.attempts)
    assert "jobs     confined by namespaces" in daemon.banner
    enforced = {
        layer.name
        for layer in capabilities.engines[0].isolation.layers
        if layer.state == pb.IsolationLayer.STATE_ENFORCED
    }
    for worker in workers_of(daemon.pid):
        status = status_of(worker)
        if "seccomp" in enforced:
            assert status["Seccomp"] == "2"
        if "privileges" in enforced:
            assert status["NoNewPrivs"] == "1"
            assert int(status["CapEff"], 16) == 0
            assert "0" not in status["Uid"].split()
        if "root" in enforced:
            assert list(Path(f"/proc/{worker}/root").iterdir()) == []
        if "namespaces" in enforced:
            for name in ("net", "mnt", "ipc", "user", "pid_for_children"):
                ours, theirs = (
                    Path(f"/proc/{pid}/ns/{name}").readlink() for pid in (daemon.pid, worker)
                )
                assert ours != theirs, name
        # Nor does it share memory that a job could leave something in.
        maps = Path(f"/proc/{worker}/maps").read_text().splitlines()
        assert not [line for line in maps if line.split()[1] == "rw-s"]


def test_an_engine_whose_jobs_are_not_confined_is_not_served(state_dir: Path) -> None:
    with (
        daemon_with_a_hostile_engine(state_dir) as daemon,
        daemon.client() as client,
    ):
        line = daemon.wait_for_log("engine is not served")
        for words in ("wasmtime-0.0.1", "could fork", "seccomp", "WASMKILN_ISOLATION=best-effort"):
            assert words in line
        assert "a layer of isolation is not in force" in daemon.log
        served = [engine.engine.id for engine in client.capabilities().engines]
        assert served == ["wasmtime-50.0.1"]
        assert client.compile(wasm.adder(60)).header.size_bytes


def test_best_effort_serves_it_and_says_so_everywhere(state_dir: Path) -> None:
    flags = ("--isolation", "best-effort")
    with (
        daemon_with_a_hostile_engine(state_dir, *flags) as daemon,
        daemon.client() as client,
    ):
        assert "wasmtime-0.0.1" in daemon.wait_for_log("jobs are not confined")
        assert "jobs     not confined: they could fork" in daemon.banner
        capabilities = client.capabilities()
        assert not capabilities.isolation_required
        hostile = next(e for e in capabilities.engines if e.engine.id == "wasmtime-0.0.1")
        assert not hostile.isolation.holds
        assert layers_of(hostile)["seccomp"].state == pb.IsolationLayer.STATE_MISSING
        refused = {attempt.name: attempt.refused for attempt in hostile.isolation.attempts}
        assert not refused["fork"]
        assert refused["read"]
        artifact = client.compile(module("fork"), engine="wasmtime-0.0.1")
        assert artifact.bytes == b'{"got": "forked"}'
