"""A cluster of six nodes: three primaries, each with a replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from tests.servers.redis_server import RedisServer, free_ports, redis_server, wait_until

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
        """Return the port of the primary that serves ``key``."""
        return self.shard_of(key)[0]

    def shard_of(self, key: bytes) -> list[int]:
        """Return the ports of all that hold ``key``, the primary first."""
        slot = key_slot(key)
        [shard] = [nodes for start, end, *nodes in self._slots() if start <= slot <= end]
        return [int(port) for _, port, *_ in shard]

    def kill(self, port: int) -> None:
        """Kill a node."""
        process = self.nodes[port].process
        process.kill()
        process.wait()
        self.killed.append(port)

    def wait_until_replaced(self, port: int) -> None:
        """Return when every other living node says that another has the slots of ``port``."""
        others = [each for each in self._alive() if each != port]
        wait_until(
            lambda: all(self._is_without(port, asked) for asked in others), "no replica took over"
        )

    def wait_until_whole(self) -> None:
        """Return when every primary has a replica."""
        for port in self._alive():
            with redis.Redis(port=port) as client:
                wait_until(partial(_whole, client), "the cluster does not become whole")

    def fail_over(self) -> None:
        """Kill the primary of slot 0, and wait until its replica serves its slots."""
        port = int(self._slots()[0][2][1])
        self.kill(port)
        self.wait_until_replaced(port)

    @contextmanager
    def moving(self, key: bytes) -> Iterator[Callable[[], None]]:
        """Move the slot of ``key`` to another primary, which has it in the end.

        What is answered moves the keys in the slot.
        """
        slot, source = key_slot(key), self.owner_of(key)
        target = next(port for _, _, (_, port, *_), *_ in self._slots() if port != source)
        with ExitStack() as stack:
            clients = {port: stack.enter_context(redis.Redis(port=port)) for port in self._alive()}
            ids = {port: _told(clients[port], "CLUSTER", "MYID") for port in (source, target)}
            _told(clients[target], "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            _told(clients[source], "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])

            def move_keys() -> None:
                keys = _told(clients[source], "CLUSTER", "GETKEYSINSLOT", slot, 100)
                assert keys
                where = ("127.0.0.1", target, "", 0, 5000)
                _told(clients[source], "MIGRATE", *where, "KEYS", *keys)

            yield move_keys
            for port in (target, source):
                _told(clients[port], "CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    def _alive(self) -> list[int]:
        return [port for port in self.nodes if port not in self.killed]

    def _slots(self, asked: int = 0) -> list[Any]:
        with redis.Redis(port=asked or self._alive()[0]) as client:
            return sorted(_told(client, "CLUSTER", "SLOTS"))

    def _is_without(self, port: int, asked: int) -> bool:
        with redis.Redis(port=asked) as client:
            state = client.cluster("INFO")["cluster_state"]
        return state == "ok" and port not in {int(entry[2][1]) for entry in self._slots(asked)}


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
                        # A replica that was sent nothing yet is not among those of its slots.
                        *("--repl-ping-replica-period", "1"),
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
    shards = {
        tuple(str(node[1]) for node in nodes) for _, _, *nodes in _told(client, "CLUSTER", "SLOTS")
    }
    replication = client.info("replication")
    return (
        client.cluster("INFO")["cluster_state"] == "ok"
        and len(shards) == _PRIMARIES
        and all(len(shard) == 2 for shard in shards)
        and replication.get("master_link_status", "up") == "up"
    )


def _told(client: redis.Redis, *command: Any) -> Any:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]
