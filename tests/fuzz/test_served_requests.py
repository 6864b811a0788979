"""Whatever a caller sends, a real daemon gives an answer of the contract, and goes on."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import given

from tests.e2e import wasm
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import memory_of
from tests.e2e.programs import installed_engines
from tests.fuzz.messages import requests
from tests.unit.rpc.served import methods

MIB = 1024 * 1024
# Drain would end the daemon, and Watch never ends.
METHODS = {m: t for m, t in methods().items() if not m.endswith(("/Drain", "/Watch"))}
FOREIGN = ("/grpc.",)
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@pytest.fixture(scope="module")
def kiln(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, grpc.Channel]]:
    installed_engines()
    state = state_with(tmp_path_factory.mktemp("fuzzed") / "state", ENGINE)
    with Daemon(state, ["--redis-url", "none"]) as daemon:
        with grpc.insecure_channel(daemon.address) as channel, daemon.client() as client:
            client.compile(wasm.adder(1))
            before = memory_of(daemon.pid)
            yield daemon, channel
            assert client.compile(wasm.adder(2)).header.size_bytes > 0
        print(f"{(memory_of(daemon.pid) - before) / MIB:.1f} MiB more in memory")
        assert memory_of(daemon.pid) - before < 64 * MIB
    assert daemon.process.returncode == 0
    assert "Traceback" not in daemon.log
    assert "call failed" not in daemon.log


@given(requests(METHODS))
def test_any_request_gets_an_answer_of_the_contract(
    kiln: tuple[Daemon, grpc.Channel], sent: tuple[bytes, str]
) -> None:
    raw, method = sent
    call = kiln[1].unary_stream(method)(raw, timeout=60)
    try:
        for _ in call:
            pass
    except grpc.RpcError as failure:
        assert failure.code() in EXPECTED, failure
        assert len(failure.details()) < 1000
        details = dict(failure.trailing_metadata()).get("grpc-status-details-bin")
        # What the services say that come with grpcio is theirs.
        assert details or method.startswith(FOREIGN)
        if details:
            status = status_pb2.Status.FromString(details)
            assert status.code == failure.code().value[0]
            assert len(details) < 8000
