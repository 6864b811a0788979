"""What an attacker who may write to Redis does to stored values."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import redis
from wasmkilnd import wire
from wasmkilnd.cache.fleet.lease import Lease
from wasmkilnd.cache.redis.tier import DEFAULT_PREFIX
from wasmkilnd.cache.value.format import HEADER_OFFSET, open_artifact, open_module
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.model import STAMP_BYTES, Artifact, CacheKey
from wasmkilnd.signing.keys import PrivateKey
from wasmkilnd.signing.sealer import Sealer

from tests.contract.sealing import THEIRS, sealer
from tests.doubles.no_sealer import NoSealer
from tests.doubles.shelf import read, stored
from tests.faults.material import Known

_NAMES = KeyNames(DEFAULT_PREFIX)
_ANYONE = NoSealer()
_HOUR_MS = 3_600_000
_STAMP = slice(HEADER_OFFSET - STAMP_BYTES, HEADER_OFFSET)

_chance = random.Random(3)

Tampering: TypeAlias = "Callable[[Target], object]"


@dataclass(frozen=True)
class Target:
    """A module whose values are tampered with, and another one to put in its place."""

    admin: redis.Redis
    keys: PrivateKey
    """The fleet's own keys; an attacker has only what was signed with them."""
    fingerprint: str
    module: Known
    other: Known

    @property
    def key(self) -> CacheKey:
        """The artifact's key."""
        return CacheKey(self.module.sha256, self.fingerprint)

    @property
    def name(self) -> bytes:
        """The name under which the artifact is stored."""
        return _NAMES.artifact(self.key)

    @property
    def module_name(self) -> bytes:
        """The name under which the module is stored."""
        return _NAMES.module(self.module.sha256)

    @property
    def lease(self) -> bytes:
        """The name of the lease."""
        return _NAMES.lease(self.key)

    def value(self, name: bytes) -> bytes:
        """Return what is stored."""
        value = self.admin.get(name)
        assert isinstance(value, bytes)
        return value

    def put(self, name: bytes, value: bytes) -> None:
        """Put ``value`` in the place of what is stored."""
        self.admin.set(name, value, keepttl=True)

    def pieces(self) -> list[bytes]:
        """Return the names of the artifact's further pieces."""
        body = open_artifact(self.value(self.name), self.key, _ANYONE.check_stamp).body
        return [_NAMES.artifact_part(self.key, piece.sha256) for piece in body.pieces[1:]]

    def module_pieces(self) -> list[bytes]:
        """Return the names of the module's further pieces."""
        sha256 = self.module.sha256
        body = open_module(self.value(self.module_name), sha256, _ANYONE.check_stamp).body
        return [_NAMES.module_part(sha256, piece.sha256) for piece in body.pieces[1:]]

    def is_whole(self) -> bool:
        """Whether artifact and module are stored with all their pieces."""
        try:
            names = [self.name, self.module_name, *self.pieces(), *self.module_pieces()]
        except (AssertionError, ValueRejected, redis.ResponseError):
            return False
        return self.admin.exists(*names) == len(names)

    def read(self) -> Artifact:
        """Return the artifact, without a check of its signature."""
        values = {name: self.value(name) for name in (self.name, *self.pieces())}
        artifact, _ = read(values, self.key, _ANYONE)
        assert isinstance(artifact, Artifact)
        return artifact

    def store(self, artifact: Artifact, by: Sealer, stamp: bytes = b"") -> None:
        """Store ``artifact`` as a stranger would, perhaps with a ``stamp`` from another value."""
        for name, value in stored(artifact, by).items():
            if name == self.name and stamp:
                value = value[: _STAMP.start] + stamp + value[_STAMP.stop :]
            self.put(name, value)


def put_another_s(target: Target) -> None:
    other = replace(target, module=target.other)
    target.put(target.name, other.value(other.name))


def put_another_s_module(target: Target) -> None:
    other = replace(target, module=target.other)
    target.put(target.module_name, other.value(other.module_name))


def cut(name: bytes, target: Target) -> None:
    value = target.value(name)
    target.put(name, value[: _chance.randrange(len(value))])


def grow(target: Target) -> None:
    target.put(target.name, target.value(target.name) + _chance.randbytes(9))


def flip(name: bytes, target: Target, end: int | None = None) -> None:
    value = bytearray(target.value(name))
    value[_chance.randrange(end or len(value))] ^= 1 << _chance.randrange(8)
    target.put(name, bytes(value))


def list_at(name: bytes, target: Target) -> None:
    target.admin.delete(name)
    target.admin.lpush(name, b"x")


def sign_as_a_stranger(target: Target) -> None:
    stranger = sealer(THEIRS)
    target.store(stranger.seal(target.read()), stranger)


def borrow_a_stamp(target: Target) -> None:
    # Native code of another module, which the engine would run, under a stamp of the fleet's.
    code = target.other.artifact
    evil = replace(target.read(), size_bytes=len(code), frames=wire.to_frames(code))
    target.store(evil, _ANYONE, stamp=target.value(target.name)[_STAMP])


def change_the_version(name: bytes, target: Target) -> None:
    value = bytearray(target.value(name))
    value[4] = _chance.choice([0, 1, 3, 255])
    target.put(name, bytes(value))


def swap_pieces(target: Target) -> None:
    one, two = _chance.choice(target.pieces()), target.name
    if len(target.pieces()) > 1:
        one, two = target.pieces()[:2]
    values = target.value(one), target.value(two)
    target.put(two, values[0])
    target.put(one, values[1])


def forge_a_lease(target: Target) -> None:
    value = _chance.choice(
        [b"mine", Lease.new(_HOUR_MS).written(target.lease, sealer(THEIRS).stamp)]
    )
    target.admin.delete(target.name)
    target.admin.set(target.lease, value)  # And it never expires.


def copy_a_lease(target: Target) -> None:
    # As it was once: nobody who holds it lives, and nobody renews it.
    value = Lease.new(1000).written(target.lease, sealer(target.keys).stamp)
    target.admin.delete(target.name)
    target.admin.set(target.lease, value)


def of_the_module(spoil: Tampering) -> Tampering:
    """Damage the stored module and delete the artifact, so that a daemon reads the module."""

    def both(target: Target) -> None:
        spoil(target)
        target.admin.delete(target.name)

    return both


def a_piece(target: Target) -> bytes:
    return _chance.choice(target.pieces())


OF_ANY: dict[str, Tampering] = {
    "value of another key": put_another_s,
    "value cut short": lambda target: cut(target.name, target),
    "value grown": grow,
    "bit flipped in the head": lambda target: flip(target.name, target, 600),
    "bit flipped anywhere": lambda target: flip(target.name, target),
    "signed by a stranger": sign_as_a_stranger,
    "other code under a borrowed stamp": borrow_a_stamp,
    "other format version": lambda target: change_the_version(target.name, target),
    "a list in its place": lambda target: list_at(target.name, target),
    "module: bit flipped": of_the_module(lambda target: flip(target.module_name, target)),
    "module: of another": of_the_module(put_another_s_module),
    "module: other format version": of_the_module(
        lambda target: change_the_version(target.module_name, target)
    ),
    "module: a list in its place": of_the_module(
        lambda target: list_at(target.module_name, target)
    ),
    "lease forged": forge_a_lease,
    "lease copied": copy_a_lease,
}
OF_PIECES: dict[str, Tampering] = {
    "piece removed": lambda target: target.admin.delete(a_piece(target)),
    "pieces swapped": swap_pieces,
    "bit flipped in a piece": lambda target: flip(a_piece(target), target),
    "piece cut short": lambda target: cut(a_piece(target), target),
    "a list in a piece's place": lambda target: list_at(a_piece(target), target),
    "module: piece removed": of_the_module(
        lambda target: target.admin.delete(*target.module_pieces())
    ),
}
TAMPERINGS = {**OF_ANY, **OF_PIECES}
