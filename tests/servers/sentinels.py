"""A primary, a replica, and three Sentinels that watch them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from tests.servers.redis_server import RedisServer, free_ports, redis_server, wait_until

_PASSWORD = "the-primary's"
_SENTINEL_USER, _SENTINEL_PASSWORD = "kiln", "the-sentinels'"
# What docs/how-to/redis.md says that it takes.
_SENTINEL_RIGHTS = "-@all +sentinel|master"
_DOWN_AFTER_MS = 1000


@dataclass
class Sentinels:
    """They run. Ports tell the two servers apart."""

    servers: dict[int, RedisServer]
    sentinels: Sequence[RedisServer]
    sentinel_ports: Sequence[int]

    def url_with(self, password: str = _SENTINEL_PASSWORD) -> str:
        """Return a URL with the password of somebody who may ask for the primary, and no more."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        options = f"sentinel_user={_SENTINEL_USER}&sentinel_password={quote(password)}"
        return f"redis+sentinel://:{quote(_PASSWORD)}@{hosts}/main?{options}"

    @property
    def url(self) -> str:
        """What an operator would set."""
        return self.url_with()

    @property
    def primary_port(self) -> int:
        """Where the Sentinels say that the primary is."""
        with self.sentinel() as client:
            return _primary(client)

    def wait_until_ready(self) -> None:
        """Return when all Sentinels agree about a primary and a replica that could take over."""
        with ExitStack() as stack:
            asked = [stack.enter_context(self.sentinel(port)) for port in self.sentinel_ports]
            wait_until(lambda: self._agreed(asked), "the Sentinels did not agree")

    def _agreed(self, asked: Sequence[redis.Redis]) -> bool:
        primaries = set(map(_primary, asked))
        replicas = self.servers.keys() - primaries
        return (
            len(primaries) == len(replicas) == 1
            and all(map(_knows_all, asked))
            and all(map(_follows, replicas))
        )

    def kill_primary(self) -> int:
        """Kill it; return its port."""
        port = self.primary_port
        process = self.servers[port].process
        process.kill()
        process.wait()
        return port

    def fail_over(self) -> None:
        """Kill the primary, and wait until the other server is one, by its own word too."""
        self.wait_until_ready()
        old = self.kill_primary()
        self.wait_until_replaced(old)

    def wait_until_replaced(self, old: int) -> None:
        """Return when the other server is the primary, by the word of all."""
        [new] = self.servers.keys() - {old}
        for port in self.sentinel_ports:
            with self.sentinel(port) as sentinel:
                wait_until(partial(_names, sentinel, new), "there was no failover")
        with redis.Redis(port=new, password=_PASSWORD) as client:
            wait_until(lambda: client.role()[0] == b"master", "the replica was not promoted")

    def sentinel(self, port: int = 0) -> redis.Redis:
        """Return a client of one of the Sentinels, with all rights."""
        return redis.Redis(port=port or self.sentinel_ports[0], password=_PASSWORD)


def _primary(sentinel: redis.Redis) -> int:
    address: Any = sentinel.sentinel_get_master_addr_by_name("main")
    return int(address[1])


def _names(sentinel: redis.Redis, port: int) -> bool:
    state: Any = sentinel.sentinel_master("main")
    return bool(state["port"] == port and not state["is_sdown"])


def _knows_all(client: redis.Redis) -> bool:
    state: Any = client.sentinel_master("main")
    known: bool = state["num-other-sentinels"] == 2 and state["num-slaves"] == 1
    return known and not any(each["is_sdown"] for each in client.sentinel_slaves("main"))


def _follows(port: int) -> bool:
    with redis.Redis(port=port, password=_PASSWORD) as client:
        return bool(client.info("replication").get("master_link_status") == "up")


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
        wait_until(lambda: _follows(replica), "the replica did not follow")
        watching = [
            stack.enter_context(
                redis_server(
                    binary,
                    folder / f"sentinel-{port}",
                    ["--sentinel"],
                    port=port,
                    config=[
                        f'requirepass "{_PASSWORD}"',
                        f'user {_SENTINEL_USER} on ">{_SENTINEL_PASSWORD}" {_SENTINEL_RIGHTS}',
                        f"sentinel monitor main 127.0.0.1 {primary} 2",
                        f'sentinel auth-pass main "{_PASSWORD}"',
                        f'sentinel sentinel-pass "{_PASSWORD}"',
                        f"sentinel down-after-milliseconds main {_DOWN_AFTER_MS}",
                        "sentinel failover-timeout main 1500",
                    ],
                )
            )
            for port in ports
        ]
        yield Sentinels(servers, watching, ports)
