"""The slot map: which node of a cluster serves which keys."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from redis.crc import key_slot

from wasmkilnd.cache.redis.server import Command

Node = tuple[str, int]
"""Host and port of a node."""

_SLOTS = 16384
# What the specification of Redis Cluster recommends at most.
_MAX_NODES = 1000


@dataclass(frozen=True, slots=True)
class SlotMap:
    """The primaries of a cluster by ranges of slots, as one node reported them."""

    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    owners: tuple[Node, ...] = ()

    @classmethod
    def read(cls, answer: Any, asked: Node) -> SlotMap:
        """Read the reply of the node ``asked`` to CLUSTER SLOTS.

        Raises ValueError for a malformed reply.
        """
        try:
            ranges = sorted(
                (int(start), int(end), _node(primary, asked)) for start, end, primary, *_ in answer
            )
        except (TypeError, ValueError, IndexError):
            raise ValueError("cannot read the reply to CLUSTER SLOTS") from None
        if not ranges:
            raise ValueError("the node belongs to no cluster yet")
        if len({owner for _, _, owner in ranges}) > _MAX_NODES:
            raise ValueError("the reply to CLUSTER SLOTS has more nodes than a cluster can have")
        starts, ends, owners = zip(*ranges, strict=True)
        return cls(starts, ends, owners)

    @property
    def primaries(self) -> frozenset[Node]:
        """The nodes that serve slots."""
        return frozenset(self.owners)

    @property
    def complete(self) -> bool:
        """Whether every slot has an owner."""
        return sum(self.ends) - sum(self.starts) + len(self.starts) == _SLOTS

    def owner(self, slot: int) -> Node | None:
        """Return the node that serves ``slot``; None if none does."""
        index = bisect_right(self.starts, slot) - 1
        return self.owners[index] if index >= 0 and slot <= self.ends[index] else None


def slot_of(command: Command) -> int:
    """Return the slot of a command's key."""
    name = command[0]
    key = command[3 if name in ("EVAL", b"EVAL") else 1]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


def node_named(host: str, port: int, asked: Node) -> Node:
    """Return the node that ``asked`` calls ``host``; an empty host means ``asked`` itself."""
    return (host if host not in ("", "?") else asked[0], port)


def _node(entry: Iterable[Any], asked: Node) -> Node:
    host, port, *_ = entry
    text = host.decode() if isinstance(host, bytes) else host or ""
    return node_named(text, int(port), asked)
