"""What an attacker knows of the daemon that it attacks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Target:
    """A daemon, and the Redis that it uses. All of it on loopback."""

    address: str
    """Where it serves gRPC: host:port."""
    admin: str
    """Where it serves metrics and health: host:port."""
    redis_socket: str
    redis_password: str
    pid: int
    slow_module: str
    """A file with an honest module that takes long to compile."""

    @classmethod
    def of_json(cls, text: str) -> Target:
        """Read what :meth:`json` wrote."""
        return cls(**json.loads(text))

    def json(self) -> str:
        """Write it for a process of its own."""
        return json.dumps(asdict(self))

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Where it serves gRPC, for a socket."""
        return _split(self.address)

    @property
    def admin_host_and_port(self) -> tuple[str, int]:
        """Where it serves HTTP, for a socket."""
        return _split(self.admin)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
