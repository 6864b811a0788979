"""The values of a Redis as anybody sees them: opaque bytes under names with a module's digest."""

from __future__ import annotations

import re
from collections.abc import Iterator

import redis

from tests.e2e.daemon import Daemon


def names_of(server: redis.Redis, module_sha256: str, prefix: str = "wasm:") -> set[bytes]:
    """Return the names of a module's values and of its artifacts'."""
    found = server.scan_iter(f"{prefix}*{module_sha256}*", count=1000)
    # A lease may still be there for a moment after its compile.
    return {name for name in found if b":lease:" not in name and server.type(name) == b"string"}


def value_of(server: redis.Redis, name: bytes) -> bytes:
    """Return a value that is there."""
    value = server.get(name)
    assert isinstance(value, bytes)
    return value


def flipped(value: bytes, at: int) -> bytes:
    """Return a value with one bit changed."""
    changed = bytearray(value)
    changed[at] ^= 1
    return bytes(changed)


def flips(value: bytes, count: int) -> Iterator[bytes]:
    """Return a value with one bit changed at ``count`` places: first, last and between them."""
    for step in range(count):
        yield flipped(value, step * (len(value) - 1) // (count - 1))


def rejected(daemon: Daemon, token: str = "") -> dict[str, int]:
    """Return how many stored values a daemon rejected, by cause."""
    row = re.compile(r'^wasmkiln_values_rejected_total\{cause="(\w+)".*\} (\d+)', re.MULTILINE)
    rows = row.findall(daemon.metrics(token))
    counts: dict[str, int] = {}
    for cause, count in rows:
        if int(count):
            counts[cause] = counts.get(cause, 0) + int(count)
    return counts
