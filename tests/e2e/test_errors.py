"""More ways to fail than the error table has rows (test_error_table.py), by the Python client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from wasmkiln import Client, WasmkilnError
from wasmkiln.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    module_service_pb2_grpc,
    types_pb2,
)
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, Daemon, fresh_state
from tests.e2e.programs import Installed

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def strict(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with small limits, so that they are met within seconds."""
    state = fresh_state(tmp_path_factory.mktemp("strict") / "state")
    limits = ["--compile-timeout-s", "2", "--workers", "1", "--queue-length", "1"]
    with Daemon(state, [*limits, "--redis-url", "none"]) as daemon:
        yield daemon


@pytest.fixture
def strict_client(strict: Daemon) -> Iterator[Client]:
    with strict.client(max_attempts=1) as client:
        yield client
        # Whatever the test did: it still compiles.
        assert client.compile(wasm.adder(4711), skip_cache_lookup=True).header.size_bytes > 0
    assert strict.process.poll() is None


def test_an_engine_that_validates_and_then_cannot_compile(strict_client: Client) -> None:
    """wasmer accepts SIMD, and then has no code for some of its operators."""
    module = wasm.from_text(
        '(module (func (export "f") (param v128) (result v128)'
        " local.get 0 f64x2.promote_low_f32x4))"
    )
    strict_client.load(module, engine="wasmer")
    with pytest.raises(WasmkilnError) as failure:
        strict_client.compile(module, engine="wasmer")
    assert failure.value.reason == "ENGINE_LACKS_FEATURE"
    assert failure.value.metadata["accepted_by"] == "wasmtime-50.0.1, wasmtime-49.0.0"


def test_a_setting_that_switches_a_proposal_off(strict_client: Client) -> None:
    module = wasm.from_text("(module (memory 1) (memory 1))")
    settings = {"wasm_multi_memory": "false"}
    with pytest.raises(WasmkilnError) as failure:
        strict_client.compile(module, engine="wasmtime-50.0.1", settings=settings)
    assert failure.value.reason == "ENGINE_LACKS_FEATURE"
    assert "wasmtime-50.0.1" in failure.value.metadata["accepted_by"]


def test_full_queue_says_when_to_come_back(strict: Daemon, strict_client: Client) -> None:
    """One worker and one place in the queue: of four slow compiles at least two are refused."""
    from concurrent.futures import ThreadPoolExecutor

    def compile_slowly(tag: int) -> WasmkilnError:
        with strict.client(max_attempts=1) as client, pytest.raises(WasmkilnError) as failure:
            client.compile(wasm.nested_blocks(1_000_000, 10 + tag), engine="wasmer")
        return failure.value

    with ThreadPoolExecutor(4) as callers:
        failures = list(callers.map(compile_slowly, range(4)))
    full = [failure for failure in failures if failure.reason == "COMPILE_QUEUE_FULL"]
    assert len(full) >= 2
    assert all(failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED for failure in full)
    assert all(failure.retry_after_s and failure.retry_after_s > 0 for failure in full)
    rest = {failure.reason for failure in failures if failure.reason != "COMPILE_QUEUE_FULL"}
    assert rest == {"COMPILE_TIMEOUT"}


@pytest.mark.parametrize("engine", TWO_ENGINES)
def test_memory_limit(engines: Installed, tmp_path: Path, engine: str) -> None:
    state = fresh_state(tmp_path / "state", engines=(engine,))
    flags = ["--compile-memory-bytes", "300MiB", "--redis-url", "none"]
    with Daemon(state, flags) as daemon, daemon.client(max_attempts=1) as client:
        with pytest.raises(WasmkilnError) as failure:
            client.compile(wasm.nested_blocks(1_000_000), engine=engine)
        assert failure.value.reason == "COMPILE_MEMORY_LIMIT"
        assert failure.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failure.value.metadata["limit_bytes"] == str(300 * MIB)
        assert client.compile(wasm.adder(1), engine=engine).header.size_bytes > 0


def test_limit_on_cpu_time(lean_state_dir: Path) -> None:
    flags = ["--compile-cpu-s", "1", "--redis-url", "none"]
    with Daemon(lean_state_dir, flags) as daemon, daemon.client(max_attempts=1) as client:
        with pytest.raises(WasmkilnError) as failure:
            client.compile(wasm.nested_blocks(1_000_000), engine="wasmer")
        assert failure.value.reason == "COMPILE_TIMEOUT"
        assert "CPU time" in failure.value.message


def test_malformed_requests(strict: Daemon) -> None:
    """With the bare stub: the project's own client would not send them."""
    with grpc.insecure_channel(strict.address) as channel:
        modules = module_service_pb2_grpc.ModuleServiceStub(channel)
        admin = admin_service_pb2_grpc.AdminServiceStub(channel)
        calls: list[Callable[[], object]] = [
            lambda: list(modules.Compile(pb.CompileRequest())),
            lambda: list(modules.Compile(pb.CompileRequest(sha256="A" * 64))),
            lambda: modules.FindMissing(pb.FindMissingRequest(keys=[types_pb2.ArtifactKey()])),
            lambda: modules.FindMissing(
                pb.FindMissingRequest(keys=[types_pb2.ArtifactKey()] * 10_001)
            ),
            lambda: modules.Load(pb.LoadRequest(module=wasm.adder(1), expected_sha256="x")),
            lambda: admin.Evict(admin_service_pb2.EvictRequest()),
            lambda: admin.Evict(admin_service_pb2.EvictRequest(all=False)),
            lambda: admin.Evict(admin_service_pb2.EvictRequest(module_sha256="x")),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as failure:
                call()
            assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            trailers = dict(failure.value.trailing_metadata())
            status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
            info = error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            assert (info.domain, info.reason) == ("wasmkiln", "INVALID_REQUEST")
