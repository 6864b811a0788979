"""The program of docs/how-to/fleet.md sends all calls about a module to one of two daemons."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import module_service_pb2_grpc

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "fleet.md"
DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(8)]


class Daemon(module_service_pb2_grpc.ModuleServiceServicer):
    """Notes which modules it was asked about."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.server = grpc.server(futures.ThreadPoolExecutor(1))
        module_service_pb2_grpc.add_ModuleServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def FindMissing(  # noqa: N802
        self, request: pb.FindMissingRequest, context: grpc.ServicerContext
    ) -> pb.FindMissingResponse:
        self.asked += [key.module_sha256 for key in request.keys]
        return pb.FindMissingResponse()


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    running = [Daemon(), Daemon()]
    yield running
    for daemon in running:
        daemon.server.stop(None)


def test_each_module_has_its_daemon(daemons: list[Daemon], tmp_path: Path) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    addresses = ",".join(f"127.0.0.1:{daemon.port}" for daemon in daemons)
    assert "10.0.0.7:50051,10.0.0.8:50051" in program
    again = "\nfor _ in range(2):\n    for one in sys.argv[1:]:\n"
    again += "        key = types_pb2.ArtifactKey(module_sha256=one)\n"
    again += "        request = module_service_pb2.FindMissingRequest(keys=[key])\n"
    again += '        stub.FindMissing(request, metadata=[("wasmkiln-module", one)])\n'
    path = tmp_path / "program.py"
    path.write_text(program.replace("10.0.0.7:50051,10.0.0.8:50051", addresses) + again)
    subprocess.run([sys.executable, path, *DIGESTS], check=True, timeout=60)
    one, other = (set(daemon.asked) for daemon in daemons)
    assert one | other == set(DIGESTS)
    assert not one & other
