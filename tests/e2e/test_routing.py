"""Several daemons behind one address: each module's calls go to one of them, while it lives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from wasmkiln import TLS, AsyncClient, Client
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.name_server import name_server
from tests.e2e.over_tls import TlsSite
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed

# A module and its artifact take 5,016 bytes of memory.
MODULES = [wasm.many_functions(3, tag=tag) for tag in range(1, 31)]
DIGESTS = [hashlib.sha256(module).hexdigest() for module in MODULES]
MEMORY_BYTES = 125_000
MEMORY = types_pb2.ORIGIN_MEMORY


class Replicas:
    """Three daemons that share nothing, on one port of three addresses."""

    def __init__(self, folder: Path) -> None:
        self.states = [fresh_state(folder / f"{number}", engines=ONE_ENGINE) for number in range(3)]
        self.daemons = [self.start(0)]
        self.port = self.daemons[0].address.rpartition(":")[2]
        self.addresses = [f"127.0.0.{host}:{self.port}" for host in (1, 2, 3)]
        self.ring = "ring:" + ",".join(self.addresses)
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


@pytest.fixture(scope="module")
def replicas(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    running = Replicas(tmp_path_factory.mktemp("replicas"))
    yield running
    for daemon in running.daemons:
        daemon.end()


@pytest.fixture(autouse=True)
def _empty(replicas: Replicas) -> None:
    for daemon in replicas.daemons:
        with daemon.client() as client:
            client.evict(everything=True)


def compiled(daemons: Sequence[Daemon]) -> int:
    """Return how many compilations have ended well."""
    engine = ONE_ENGINE[0]
    return sum(int(d.metric("compiles_total", engine=engine, outcome="ok")) for d in daemons)


def compile_all(client: Client) -> list[bytes]:
    return [client.compile(module).bytes for module in MODULES]


def test_each_module_is_compiled_and_held_by_one_daemon(replicas: Replicas) -> None:
    before = compiled(replicas.daemons)
    with Client(replicas.ring) as client:
        first = compile_all(client)
    # A client of its own, as another process has one: its ring is the same.
    with Client(replicas.ring) as other:
        assert other.find_missing(DIGESTS) == []
        again = [other.compile(digest) for digest in DIGESTS]
    assert {artifact.header.origin for artifact in again} == {MEMORY}
    assert [artifact.bytes for artifact in again] == first
    assert compiled(replicas.daemons) - before == len(MODULES)
    holders = replicas.holders()
    assert {len(held) for held in holders} == {1}
    shares = [holders.count([number]) for number in range(3)]
    print(f"of {len(MODULES)} modules the daemons hold {shares}")
    assert all(shares)


def test_what_operates_on_a_module_goes_where_it_is(replicas: Replicas) -> None:
    with Client(replicas.ring) as client:
        compile_all(client)
        holders = dict(zip(DIGESTS, replicas.holders(), strict=True))
        for digest in DIGESTS[:3]:
            client.pin(digest)
        for number, daemon in enumerate(replicas.daemons):
            with daemon.client() as one:
                pinned = {pin.module_sha256 for pin in one.pins().pins}
            assert pinned == {each for each in DIGESTS[:3] if holders[each] == [number]}
        for digest in DIGESTS[:3]:
            assert client.unpin(digest).removed
            assert client.evict(module_sha256=digest).artifacts == 1


def test_one_daemon_alone_cannot_hold_them(replicas: Replicas) -> None:
    with replicas.daemons[0].client() as client:
        compile_all(client)
        assert client.find_missing(DIGESTS)


async def test_the_client_for_asyncio_routes_alike(replicas: Replicas) -> None:
    with Client(replicas.ring) as client:
        compile_all(client)
    async with AsyncClient(replicas.ring) as other:
        for digest in DIGESTS:
            assert (await other.compile(digest)).header.origin == MEMORY


def test_a_name_with_the_addresses_of_all(replicas: Replicas) -> None:
    with name_server(["127.0.0.3", "127.0.0.1", "127.0.0.2"]) as server:
        ring = f"ring:dns://{server}/kilns.example.org:{replicas.port}"
        with Client(ring) as client, Client(replicas.ring) as other:
            compile_all(client)
            holders = replicas.holders()
            # The places on the ring are those of the addresses, whoever told them.
            assert {other.compile(digest).header.origin for digest in DIGESTS} == {MEMORY}
    assert {len(held) for held in holders} == {1}
    assert {number for [number] in holders} == {0, 1, 2}


def test_a_list_over_tls(engines: Installed, tmp_path: Path) -> None:
    site = TlsSite(tmp_path / "tls")
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    with Daemon(state, site.flags("--listen", "127.0.0.2:0", client_certificates=False)) as daemon:
        ring = "ring:" + ",".join(daemon.addresses)
        with Client(ring, tls=TLS(site.authority.ca_file, server_name="localhost")) as client:
            assert client.compile(MODULES[0]).bytes == client.compile(DIGESTS[0]).bytes


def test_others_take_over_what_a_dead_one_had_until_it_is_back(replicas: Replicas) -> None:
    with Client(replicas.ring) as client:
        compile_all(client)
        homes = dict(zip(MODULES, (held[0] for held in replicas.holders()), strict=True))
        replicas.daemons[1].kill()
        for module, home in homes.items():
            header = client.compile(module).header
            assert (header.origin == MEMORY) == (home != 1)
        replicas.daemons[1] = replicas.start(1, "--listen", replicas.addresses[1])
        own = next(module for module, home in homes.items() if home == 1)

        def is_back() -> bool:
            client.compile(own)
            return compiled([replicas.daemons[1]]) > 0

        eventually(is_back, "the daemon that came back gets no call", 60)
