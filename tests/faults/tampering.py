"""What an attacker who may write to Redis does to stored values."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import redis
from wasmkilnd import model
from wasmkilnd.cache.value import TRAILER_BYTES, Frame, ValueRejected, head_bytes, open_value
from wasmkilnd.model import STAMP_BYTES, Artifact, CacheKey
from wasmkilnd.signing.sealer import Sealer

from tests.contract.sealing import THEIRS, sealer
from tests.doubles.no_sealer import NoSealer
from tests.doubles.shelf import opened, stored
from tests.faults.material import ENGINE, Known

_PREFIX = "wasm:3:"
_ANYONE = NoSealer()
_HOUR_MS = 3_600_000
_STAMP = slice(-STAMP_BYTES, None)
# Where the version stands, behind the magic.
_VERSION = 4 - TRAILER_BYTES

_chance = random.Random(3)

Tampering: TypeAlias = "Callable[[Target], object]"


@dataclass(frozen=True)
class Target:
    """A module whose values are tampered with, and another one to put in its place."""

    admin: redis.Redis
    fingerprint: str
    module: Known
    other: Known

    @property
    def key(self) -> CacheKey:
        """The artifact's key."""
        return CacheKey(self.module.sha256, self.fingerprint, ENGINE)

    @property
    def name(self) -> bytes:
        """The name under which the artifact is stored."""
        return f"{_PREFIX}compiled:{{{self.module.sha256}}}:{ENGINE}:{self.fingerprint}".encode()

    @property
    def module_name(self) -> bytes:
        """The name under which the module is stored."""
        return f"{_PREFIX}module:{{{self.module.sha256}}}".encode()

    @property
    def set(self) -> bytes:
        """The name of the set of the module's artifacts."""
        return f"{_PREFIX}of:{{{self.module.sha256}}}".encode()

    @property
    def lease(self) -> bytes:
        """The name of the lease."""
        return f"{_PREFIX}lease:{{{self.module.sha256}}}:{self.fingerprint}".encode()

    def value(self, name: bytes) -> bytes:
        """Return what is stored."""
        value = self.admin.get(name)
        assert isinstance(value, bytes)
        return value

    def put(self, name: bytes, value: bytes) -> None:
        """Put ``value`` in the place of what is stored."""
        self.admin.set(name, value, keepttl=True)

    def frames(self) -> tuple[Frame, ...]:
        """Return where the artifact's frames are."""
        return open_value(self.value(self.name), self.key, _ANYONE).frames

    def is_whole(self) -> bool:
        """Whether artifact and module are stored, both complete."""
        try:
            opened(self.value(self.name), self.key, _ANYONE)
            opened(self.value(self.module_name), self.module.sha256, _ANYONE)
        except (AssertionError, ValueRejected, redis.ResponseError):
            return False
        return True

    def read(self) -> Artifact:
        """Return the artifact, without a check of its signature."""
        artifact = opened(self.value(self.name), self.key, _ANYONE)
        assert isinstance(artifact, Artifact)
        return artifact

    def store(self, artifact: Artifact, by: Sealer, stamp: bytes = b"") -> None:
        """Store ``artifact`` as a stranger would, perhaps with a ``stamp`` from another value."""
        [value] = stored(artifact, by).values()
        self.put(self.name, value[: _STAMP.start] + stamp if stamp else value)


def put_another_s(target: Target) -> None:
    other = replace(target, module=target.other)
    target.put(target.name, other.value(other.name))


def put_another_s_module(target: Target) -> None:
    other = replace(target, module=target.other)
    target.put(target.module_name, other.value(other.module_name))


def cut_the_end(target: Target) -> None:
    value = target.value(target.name)
    target.put(target.name, value[: _chance.randrange(len(value))])


def cut_the_beginning(target: Target) -> None:
    value = target.value(target.name)
    target.put(target.name, value[_chance.randrange(1, len(value)) :])


def grow(target: Target) -> None:
    value, more = target.value(target.name), _chance.randbytes(9)
    target.put(target.name, _chance.choice([value + more, more + value]))


def flip(name: bytes, target: Target) -> None:
    flip_in(name, target, 0, len(target.value(name)))


def flip_in(name: bytes, target: Target, begin: int, end: int) -> None:
    value = bytearray(target.value(name))
    value[_chance.randrange(begin, end)] ^= 1 << _chance.randrange(8)
    target.put(name, bytes(value))


def flip_in_the_head(target: Target) -> None:
    value = target.value(target.name)
    flip_in(target.name, target, len(value) - head_bytes(value), len(value))


def list_at(name: bytes, target: Target) -> None:
    target.admin.delete(name)
    target.admin.lpush(name, b"x")


def sign_as_a_stranger(target: Target) -> None:
    stranger = sealer(THEIRS)
    target.store(stranger.seal(target.read()), stranger)


def borrow_a_stamp(target: Target) -> None:
    # Native code of another module, which the engine would run, under a stamp of the fleet's.
    code = target.other.artifact
    evil = replace(target.read(), size_bytes=len(code), frames=model.to_frames(code))
    target.store(evil, _ANYONE, stamp=target.value(target.name)[_STAMP])


def change_the_version(name: bytes, target: Target) -> None:
    value = bytearray(target.value(name))
    value[_VERSION] = _chance.choice([0, 1, 2, 4, 255])
    target.put(name, bytes(value))


def spoil_the_set(target: Target) -> None:
    target.admin.delete(target.set, target.name)
    members = [b"", b"x", b"\xff" * 9, f"{ENGINE}:{'0' * 64}".encode()]
    spoil: list[Callable[[], object]] = [
        lambda: None,
        lambda: target.admin.set(target.set, b"x"),
        lambda: target.admin.sadd(target.set, *members),
    ]
    _chance.choice(spoil)()


def forge_a_lease(target: Target) -> None:
    target.admin.delete(target.name)
    # These never expire, and so are none of the fleet's.
    target.admin.set(target.lease, _chance.choice([b"mine", b"failed", _token(), bytes(999)]))


def forge_a_note(target: Target) -> None:
    target.admin.delete(target.name)
    target.admin.set(target.lease, b"failed", px=_HOUR_MS)


def forge_a_lease_for_an_hour(target: Target) -> None:
    # Nothing tells it from a lease that a daemon holds and renews.
    target.admin.delete(target.name)
    target.admin.set(target.lease, _token(), px=_HOUR_MS)


def _token() -> bytes:
    return _chance.randbytes(16).hex().encode()


def of_the_module(spoil: Tampering) -> Tampering:
    """Damage the stored module and delete the artifact, so that a daemon reads the module."""

    def both(target: Target) -> None:
        spoil(target)
        target.admin.delete(target.name)

    return both


def swap_frames(target: Target) -> None:
    value, (one, two, *_) = target.value(target.name), target.frames()
    middle, end = one.stored_bytes, two.offset + two.stored_bytes
    target.put(target.name, value[middle:end] + value[:middle] + value[end:])


def put_another_s_frame(target: Target) -> None:
    other, [first, *_] = replace(target, module=target.other), target.frames()
    value, alien = target.value(target.name), other.value(other.name)
    target.put(target.name, alien[: first.stored_bytes] + value[first.stored_bytes :])


def remove_the_first_frame(target: Target) -> None:
    target.put(target.name, target.value(target.name)[target.frames()[0].stored_bytes :])


def flip_in_the_first_frame(target: Target) -> None:
    # Of a large value it does not come with the head.
    flip_in(target.name, target, 0, target.frames()[0].stored_bytes)


HELD_FOR_AN_HOUR = "lease forged, for an hour"
OF_ANY: dict[str, Tampering] = {
    "value of another key": put_another_s,
    "value without its end": cut_the_end,
    "value without its beginning": cut_the_beginning,
    "value grown": grow,
    "bit flipped in the head": flip_in_the_head,
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
    "set of its artifacts spoilt": spoil_the_set,
    "lease forged": forge_a_lease,
    "note of a failure forged": forge_a_note,
    HELD_FOR_AN_HOUR: forge_a_lease_for_an_hour,
}
OF_LARGE: dict[str, Tampering] = {
    "frame removed": remove_the_first_frame,
    "frames swapped": swap_frames,
    "frame of another value": put_another_s_frame,
    "bit flipped in a frame": flip_in_the_first_frame,
    "large value without its beginning": cut_the_beginning,
    "large module: bit flipped": of_the_module(lambda target: flip(target.module_name, target)),
}
TAMPERINGS = {**OF_ANY, **OF_LARGE}
