"""The host store with real daemons and engines: what a host has is served, mapped and evicted."""

from __future__ import annotations

import json
import signal
import stat
from pathlib import Path

import grpc
import pytest
from wasmkiln import Artifact
from wasmkiln.shared import ARTIFACT, ENGINES, entry_path
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import module_service_pb2_grpc as rpc
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.fixtures import serving
from tests.e2e.in_engine import run_script
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.test_cache import COMPILED, HOST_STORE, MEMORY
from tests.e2e.test_engines import CALL_ADD

NO_REDIS = ("--redis-url", "none")
[ENGINE] = ONE_ENGINE


def stored(daemon: Daemon, entries: int) -> None:
    """Wait until this daemon has written ``entries`` entries to the host store."""
    eventually(
        lambda: daemon.metric("tier_stores_total", outcome="ok", tier="host_store") >= entries,
        "the host store was not written",
    )


def compiles(daemon: Daemon) -> float:
    """Return how many compilations of this daemon succeeded."""
    return daemon.metric("compiles_total", engine=ENGINE, outcome="ok")


def asked_for_file(
    daemon: Daemon, source: bytes | str, *, skip_cache_lookup: bool = False
) -> tuple[types_pb2.ArtifactHeader, bytes]:
    """Return the header and the bytes that a caller gets who accepts a file."""
    request = pb.CompileRequest(accept_host_file=True, skip_cache_lookup=skip_cache_lookup)
    if isinstance(source, bytes):
        request.module = source
    else:
        request.sha256 = source
    with grpc.insecure_channel(daemon.address) as channel:
        first, *chunks = rpc.ModuleServiceStub(channel).Compile(request, timeout=60)
    return first.header, b"".join(part.chunk for part in chunks)


kiln = serving(*ONE_ENGINE, flags=NO_REDIS)
"""A daemon with memory and a host store alone."""


def test_a_restart_without_redis_compiles_nothing(lean_state_dir: Path) -> None:
    with Daemon(lean_state_dir, NO_REDIS) as one, one.client() as client:
        assert "host store" in one.banner
        artifacts = [client.compile(wasm.adder(tag)) for tag in range(5)]
    # The daemon writes what waits before it ends.
    with Daemon(lean_state_dir, NO_REDIS) as two, two.client() as client:
        for first in artifacts:
            again = client.compile(first.header.module_sha256)
            assert again.header.origin == HOST_STORE
            assert again.bytes == first.bytes
            assert client.compile(first.header.module_sha256).header.origin == MEMORY
        client.evict(all=True, tier="memory")
        assert client.find_missing([each.header.module_sha256 for each in artifacts]) == []
        assert compiles(two) == 0
        tier = next(each for each in client.stats().tiers if each.tier == "host_store")
        assert (tier.entries, tier.hits, tier.errors) == (5, 5, 0)
        assert 0 < tier.bytes <= tier.limit_bytes
        assert client.stats().hit_ratio == 1


def test_the_entry_is_what_any_client_can_use_and_a_caller_is_told(
    kiln: Daemon, engines: Installed
) -> None:
    store = kiln.state_dir / "host_store"
    with kiln.client(host_store_dir="none") as client:
        for source, origin in ((wasm.adder(2), COMPILED), (wasm.digest(wasm.adder(2)), HOST_STORE)):
            header, payload = asked_for_file(kiln, source)
            assert (header.origin, payload) == (origin, b"")
            file = Path(header.host_file.path)
            assert file == entry_path(store, header.fingerprint, header.module_sha256) / ARTIFACT
            found = file.stat()
            assert (found.st_dev, found.st_ino) == (header.host_file.device, header.host_file.inode)
            assert found.st_size == header.size_bytes
        opened, made = Artifact.open(file), client.compile(wasm.adder(2))
        again, payload = asked_for_file(kiln, wasm.adder(2), skip_cache_lookup=True)
    assert opened.bytes == made.bytes
    assert opened.header.attestation == made.header.attestation
    assert run_script(engines, ENGINE, CALL_ADD["wasmer"], str(file)) == "42"
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o640}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o750
    [served] = json.loads((store / ENGINES).read_text())["engines"]
    assert (served["id"], served["default"]) == (ENGINE, True)
    assert served["fingerprint"] == made.header.fingerprint
    assert (again.origin, payload) == (COMPILED, b"")
    assert Path(again.host_file.path).stat().st_ino == again.host_file.inode


def test_evict_reaches_it(kiln: Daemon) -> None:
    with kiln.client() as client:
        client.evict(all=True)
        written = int(kiln.metric("tier_stores_total", outcome="ok", tier="host_store"))
        one, two = (client.compile(wasm.adder(tag)).header for tag in (1, 2))
        stored(kiln, written + 2)
        gone = client.evict(one.module_sha256, tier="host_store")
        assert (gone.artifacts, list(gone.unreachable_tiers)) == (1, [])
        header, _ = asked_for_file(kiln, two.module_sha256)
        with Path(header.host_file.path).open("rb") as mapped:
            client.evict(engine=ENGINE)
            assert len(mapped.read()) == header.size_bytes  # Whoever has it open keeps it.
        assert not Path(header.host_file.path).exists()
        again = client.compile(wasm.adder(2)).header
        assert again.origin == COMPILED
        stored(kiln, written + 3)
        assert client.evict(all=True).artifacts == 2  # In memory and in the store.
        assert len(client.find_missing([two.module_sha256])) == 1


def test_sighup_changes_the_limit(engines: Installed, tmp_path: Path) -> None:
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    file = tmp_path / "wasmkilnd.toml"
    file.write_text('redis_url = "none"\nhost_store_bytes = "64MiB"\n')
    with Daemon(state, ["--config", str(file)]) as daemon, daemon.client() as client:
        for tag in range(10):
            client.compile(wasm.adder(tag))
        stored(daemon, 10)
        size_bytes = daemon.metric("tier_bytes", tier="host_store")
        limit_bytes = int(size_bytes / 2)
        file.write_text(f'redis_url = "none"\nhost_store_bytes = {limit_bytes}\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for_log('"reloaded"')
        assert daemon.metric("tier_limit_bytes", tier="host_store") == limit_bytes
        eventually(
            lambda: daemon.metric("tier_bytes", tier="host_store") <= limit_bytes,
            "the host store makes no room",
        )
        assert daemon.metric("tier_evictions_total", tier="host_store") >= 5
        file.write_text('redis_url = "none"\nhost_store_bytes = 0\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for_log('"setting needs a restart"')
        assert daemon.metric("tier_limit_bytes", tier="host_store") == limit_bytes


def test_a_directory_that_others_may_write_is_told_once_and_left_alone(
    lean_state_dir: Path,
) -> None:
    store = lean_state_dir / "host_store"
    store.mkdir()
    store.chmod(0o777)
    with Daemon(lean_state_dir, NO_REDIS) as daemon, daemon.client() as client:
        for origin in (COMPILED, MEMORY):
            header, payload = asked_for_file(daemon, wasm.adder(1))
            assert (header.origin, header.HasField("host_file")) == (origin, False)
            assert len(payload) == header.size_bytes
        line = daemon.wait_for_log("cannot use the host store")
        assert "chmod" in line
        assert f"host store unusable: cannot use {store}: other users may write" in daemon.banner
        told = [each for each in daemon.log_lines if "other users may write" in each]
        assert [each for each in told if "a cache write was dropped" not in each] == [line]
        assert client.health() == "SERVING"
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("off", [("--host-store-bytes", "0"), ("--host-store-dir", "none")])
def test_it_can_be_switched_off(lean_state_dir: Path, off: tuple[str, str]) -> None:
    with Daemon(lean_state_dir, (*NO_REDIS, *off)) as daemon:
        assert "no host store" in daemon.banner
        header, payload = asked_for_file(daemon, wasm.adder(1))
        assert not header.HasField("host_file")
        assert len(payload) == header.size_bytes
    assert not (lean_state_dir / "host_store").exists()
