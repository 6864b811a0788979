"""A cluster of six nodes: three primaries, each with a replica."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from tests.contract.servers import RedisServer, free_ports, redis_server, wait_until

_PRIMARIES = 3
_SLOTS = 16384
# Low, so that failovers are quick; not so low that a busy machine causes one.
_NODE_TIMEOUT_MS = 2000


@dataclass
class Cluster:
    """It runs."""

    url: str
    nodes: dict[int, RedisServer]
    """By port."""
    killed: list[int]

    def owner_of(self, key: bytes) -> int:
        """Answer the port of the primary that serves ``key``."""
        slot = key_slot(key)
        for start, end, (_, port, *_), *_ in self._slots():
            if start <= slot <= end:
                return int(port)
        raise AssertionError("nobody serves it")

    def kill(self, port: int) -> None:
        """Kill a node."""
        process = self.nodes[port].process
        process.kill()
        process.wait()
        self.killed.append(port)

    def wait_until_replaced(self, port: int) -> None:
        """Return when every living node says that another node has the slots of ``port``."""
        wait_until(
            lambda: all(
                port not in {int(entry[2][1]) for entry in self._slots(asked)}
                and self._state(asked) == "ok"
                for asked in self.nodes
                if asked not in self.killed
            ),
            "no replica took over",
        )

    def fail_over(self) -> None:
        """Kill the primary of slot 0, and wait until its replica serves its slots."""
        port = int(self._slots()[0][2][1])
        self.kill(port)
        self.wait_until_replaced(port)

    def _slots(self, asked: int = 0) -> list[Any]:
        port = asked or next(port for port in self.nodes if port not in self.killed)
        with redis.Redis(port=port) as client:
            return sorted(_told(client, "CLUSTER", "SLOTS"))

    def _state(self, asked: int) -> str:
        with redis.Redis(port=asked) as client:
            return str(client.cluster("INFO")["cluster_state"])


@contextmanager
def cluster(binary: str, folder: Path, config: Sequence[str] = ()) -> Iterator[Cluster]:
    """Run one in ``folder``. ``config`` is added to each node's configuration."""
    ports = free_ports(4 * _PRIMARIES)
    ports, buses = ports[: 2 * _PRIMARIES], ports[2 * _PRIMARIES :]
    with ExitStack() as stack:
        nodes = {
            port: stack.enter_context(
                redis_server(
                    binary,
                    folder / str(port),
                    [
                        *("--cluster-enabled", "yes", "--cluster-port", str(bus)),
                        *("--cluster-node-timeout", str(_NODE_TIMEOUT_MS)),
                        *("--cluster-replica-validity-factor", "0"),
                        *("--repl-diskless-sync-delay", "0"),
                    ],
                    port=port,
                    config=config,
                )
            )
            for port, bus in zip(ports, buses, strict=True)
        }
        clients = [stack.enter_context(redis.Redis(port=port)) for port in ports]
        _form(clients, ports, buses)
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        yield Cluster(f"redis+cluster://{hosts}", nodes, [])


def _form(clients: Sequence[redis.Redis], ports: Sequence[int], buses: Sequence[int]) -> None:
    for index, client in enumerate(clients):
        _told(client, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        if index < _PRIMARIES:
            start = _SLOTS * index // _PRIMARIES
            end = _SLOTS * (index + 1) // _PRIMARIES - 1
            _told(client, "CLUSTER", "ADDSLOTSRANGE", start, end)
        if index:
            _told(clients[0], "CLUSTER", "MEET", "127.0.0.1", ports[index], buses[index])
    ids = [_told(client, "CLUSTER", "MYID") for client in clients]
    for primary, replica in zip(ids, clients[_PRIMARIES:], strict=False):
        wait_until(partial(_knows, replica, primary), "the nodes do not meet")
        _told(replica, "CLUSTER", "REPLICATE", primary)
    for client in clients:
        wait_until(partial(_whole, client), "the cluster does not form")


def _knows(client: redis.Redis, node: bytes) -> bool:
    known: list[bytes] = _told(client, "CLUSTER", "NODES").splitlines()
    return any(line.startswith(node) and b"handshake" not in line for line in known)


def _whole(client: redis.Redis) -> bool:
    slots = _told(client, "CLUSTER", "SLOTS")
    replication = client.info("replication")
    return (
        client.cluster("INFO")["cluster_state"] == "ok"
        and len(slots) == _PRIMARIES
        and all(len(entry) == 4 for entry in slots)  # Each with a replica.
        and replication.get("master_link_status", "up") == "up"
    )


def _told(client: redis.Redis, *command: Any) -> Any:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]
