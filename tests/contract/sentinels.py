"""A primary, a replica, and three Sentinels that watch them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis

from tests.contract.servers import RedisServer, free_ports, redis_server, wait_until

_PASSWORD, _SENTINEL_PASSWORD = "the-primary's", "the-sentinels'"
_DOWN_AFTER_MS = 1000


@dataclass
class Sentinels:
    """They run. Ports tell the two servers apart."""

    url: str
    sentinel_password: str
    servers: dict[int, RedisServer]
    sentinels: Sequence[RedisServer]
    sentinel_ports: Sequence[int]

    @property
    def primary_port(self) -> int:
        """Where the Sentinels say that the primary is."""
        with self._ask(self.sentinel_ports[0]) as client:
            return int(client.sentinel_get_master_addr_by_name("main")[1])

    def wait_until_ready(self) -> None:
        """Return when each Sentinel knows the others and a replica that could take over."""
        for port in self.sentinel_ports:
            with self._ask(port) as client:
                wait_until(partial(_knows_all, client), "the Sentinels did not meet")

    def kill_primary(self) -> int:
        """Kill it; answer its port."""
        port = self.primary_port
        process = self.servers[port].process
        process.kill()
        process.wait()
        return port

    def fail_over(self) -> None:
        """Kill the primary, and wait until the other server is one, by its own word too."""
        self.wait_until_ready()
        old = self.kill_primary()
        wait_until(lambda: self.primary_port != old, "there was no failover")
        with redis.Redis(port=self.primary_port, password=_PASSWORD) as client:
            wait_until(lambda: client.role()[0] == b"master", "the replica was not promoted")

    def _ask(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, password=self.sentinel_password)


def _knows_all(client: redis.Redis) -> bool:
    state: Any = client.sentinel_master("main")
    known: bool = state["num-other-sentinels"] == 2 and state["num-slaves"] == 1
    return known and not any(each["is_sdown"] for each in client.sentinel_slaves("main"))


@contextmanager
def sentinels(binary: str, folder: Path) -> Iterator[Sentinels]:
    """Run them in ``folder``; each asks for a password, the Sentinels for another one."""
    primary, replica, *ports = free_ports(5)
    common = ["--requirepass", _PASSWORD, "--masterauth", _PASSWORD]
    common += ["--repl-diskless-sync-delay", "0"]
    with ExitStack() as stack:
        servers = {
            port: stack.enter_context(
                redis_server(binary, folder / str(port), [*common, *settings], port=port)
            )
            for port, settings in (
                (primary, []),
                (replica, ["--replicaof", f"127.0.0.1 {primary}"]),
            )
        }
        with redis.Redis(port=replica, password=_PASSWORD) as client:
            wait_until(
                lambda: client.info("replication")["master_link_status"] == "up",
                "the replica did not follow",
            )
        watching = [
            stack.enter_context(
                redis_server(
                    binary,
                    folder / f"sentinel-{port}",
                    ["--sentinel"],
                    port=port,
                    config=[
                        f'requirepass "{_SENTINEL_PASSWORD}"',
                        f"sentinel monitor main 127.0.0.1 {primary} 2",
                        f'sentinel auth-pass main "{_PASSWORD}"',
                        f'sentinel sentinel-pass "{_SENTINEL_PASSWORD}"',
                        f"sentinel down-after-milliseconds main {_DOWN_AFTER_MS}",
                        "sentinel failover-timeout main 5000",
                    ],
                )
            )
            for port in ports
        ]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        password = _PASSWORD.replace("'", "%27")
        url = f"redis+sentinel://:{password}@{hosts}/main"
        yield Sentinels(url, _SENTINEL_PASSWORD, servers, watching, ports)
