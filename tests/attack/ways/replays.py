"""An attacker who may write to Redis puts old values back, alters them, and swaps them."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter

import redis

from tests.attack.target import Target

_PREFIX = "wasm:*"
_MOST_KNOWN = 2_000
_LEASE = b"wasm:3:lease:"


def attack(target: Target, until_s: float) -> Counter[str]:
    """Record every value that appears, and set it again later under its key or another."""
    done: Counter[str] = Counter()
    dice = random.Random(0)
    known: dict[bytes, bytes] = {}
    with redis.Redis(
        unix_socket_path=target.redis_socket, password=target.redis_password, socket_timeout=10
    ) as client:
        while time.monotonic() < until_s:
            with contextlib.suppress(redis.ResponseError):
                _learn(client, known, done)
            for key in dice.sample(sorted(known), min(20, len(known))):
                act = dice.choice((_replay, _replay, _swap, _flip, _grow, _delete, _block))
                with contextlib.suppress(redis.ResponseError):
                    act(client, key, known, dice)
                    done[act.__name__.strip("_")] += 1
            time.sleep(0.02)
        # What it did last must not harm whoever comes afterwards.
        for key in known:
            client.delete(key)
    return done


def _learn(client: redis.Redis, known: dict[bytes, bytes], done: Counter[str]) -> None:
    for key in client.scan_iter(_PREFIX, count=500, _type="string"):
        if key in known or len(known) >= _MOST_KNOWN:
            continue
        value = client.get(key)
        if isinstance(value, bytes):
            known[key] = value
            done["leases seen" if key.startswith(_LEASE) else "values seen"] += 1


def _replay(client: redis.Redis, key: bytes, known: dict[bytes, bytes], _: random.Random) -> None:
    client.set(key, known[key])


def _swap(client: redis.Redis, key: bytes, known: dict[bytes, bytes], dice: random.Random) -> None:
    client.set(key, known[dice.choice(sorted(known))])


def _flip(client: redis.Redis, key: bytes, known: dict[bytes, bytes], dice: random.Random) -> None:
    value = bytearray(known[key])
    if value:
        value[dice.randrange(len(value))] ^= 1 << dice.randrange(8)
        client.set(key, bytes(value))


def _grow(client: redis.Redis, key: bytes, known: dict[bytes, bytes], _: random.Random) -> None:
    client.set(key, known[key] + bytes(2**20))


def _block(client: redis.Redis, key: bytes, known: dict[bytes, bytes], _: random.Random) -> None:
    # In the place of the set of its module's artifacts.
    module, braced, _rest = key.partition(b"{")[2].partition(b"}")
    if braced:
        client.set(b"wasm:3:of:{%b}" % module, known[key], ex=1)


def _delete(client: redis.Redis, key: bytes, _: dict[bytes, bytes], __: random.Random) -> None:
    client.delete(key)
