"""Several daemons: each module's calls go to one of them, while it lives, as fleet.md says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.programs import ROOT, Installed

# A module and its artifact take 7,064 bytes of memory.
MODULES = [wasm.many_functions(3, tag=tag) for tag in range(1, 31)]
DIGESTS = [wasm.digest(module) for module in MODULES]
MEMORY_BYTES = 176_000
MEMORY = types_pb2.ORIGIN_MEMORY
PAGE = (ROOT / "docs" / "how-to" / "fleet.md").read_text()
# Compiles each module through a channel of its own, as the page says, and prints the origins.
BY_GRPC = """
import json, sys
import grpc
from wasmkiln.v1 import module_service_pb2 as pb, module_service_pb2_grpc as stubs

target, config = sys.argv[1:]
options = [("grpc.service_config", config)]
service = stubs.ModuleServiceStub(grpc.insecure_channel(target, options))
origins = []
for line in sys.stdin:
    sha256, module = line.split()
    request = pb.CompileRequest(module=bytes.fromhex(module))
    metadata = [("wasmkiln-module", sha256)]
    [first, *_] = service.Compile(request, metadata=metadata, timeout=60)
    origins.append(first.header.origin)
print(json.dumps(origins))
"""


class Replicas:
    """Three daemons that share nothing, on one port of three addresses."""

    def __init__(self, folder: Path) -> None:
        self.states = [fresh_state(folder / f"{number}", engines=ONE_ENGINE) for number in range(3)]
        self.daemons = [self.start(0)]
        self.port = self.daemons[0].address.rpartition(":")[2]
        self.addresses = [f"127.0.0.{host}:{self.port}" for host in (1, 2, 3)]
        for number in (1, 2):
            self.daemons.append(self.start(number, "--listen", self.addresses[number]))

    def start(self, number: int, *flags: str) -> Daemon:
        """Start a daemon that keeps what it has in its memory and nowhere else."""
        alone = ["--redis-url", "none", "--workers", "1", "--host-store-bytes", "0"]
        return Daemon(self.states[number], [*alone, "--memory-bytes", str(MEMORY_BYTES), *flags])

    def holders(self) -> list[list[int]]:
        """Return the daemons that hold the artifact of each module."""
        missing = []
        for daemon in self.daemons:
            with daemon.client() as client:
                missing.append({key.module_sha256 for key in client.find_missing(DIGESTS)})
        return [[n for n, lacks in enumerate(missing) if one not in lacks] for one in DIGESTS]


def compiled(daemons: Sequence[Daemon]) -> int:
    """Return how many compilations have ended well."""
    engine = ONE_ENGINE[0]
    return sum(int(d.metric("compiles_total", engine=engine, outcome="ok")) for d in daemons)


def by_grpc(replicas: Replicas) -> list[int]:
    """Compile each module through gRPC's own ring. Return where each artifact came from."""
    [policy] = re.findall(r"^policy = (.*)$", PAGE, re.MULTILINE)
    config = json.dumps({"loadBalancingConfig": [json.loads(policy)]})
    [variable] = re.findall(r'"(GRPC_\w+)"', PAGE)
    done = subprocess.run(
        [sys.executable, "-c", BY_GRPC, "ipv4:" + ",".join(replicas.addresses), config],
        input="".join(f"{wasm.digest(one)} {one.hex()}\n" for one in MODULES),
        env={**os.environ, variable: "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    origins: list[int] = json.loads(done.stdout)
    return origins


@pytest.fixture
def replicas(engines: Installed, tmp_path: Path) -> Iterator[Replicas]:
    running = Replicas(tmp_path)
    yield running
    for daemon in running.daemons:
        daemon.end()


def test_each_module_has_one_daemon_of_grpc_s_ring_while_that_lives(replicas: Replicas) -> None:
    by_grpc(replicas)
    # A channel of its own, as another process has one: its ring is the same.
    assert set(by_grpc(replicas)) == {MEMORY}
    assert compiled(replicas.daemons) == len(MODULES)
    holders = replicas.holders()
    assert {len(held) for held in holders} == {1}
    homes = [held[0] for held in holders]
    print(f"of {len(MODULES)} modules the daemons hold {[homes.count(n) for n in range(3)]}")
    assert set(homes) == {0, 1, 2}

    # Others take over what a dead one had, until it is back.
    replicas.daemons[1].kill()
    origins = by_grpc(replicas)
    assert [origin == MEMORY for origin in origins] == [home != 1 for home in homes]
    replicas.daemons[1] = replicas.start(1, "--listen", replicas.addresses[1])
    by_grpc(replicas)
    assert compiled([replicas.daemons[1]]) == homes.count(1)

    # One alone cannot hold them.
    with replicas.daemons[0].client() as client:
        for module in MODULES:
            client.compile(module)
        assert client.find_missing(DIGESTS)
