"""What stands in a lease: who holds it, and signs of its life.

``<holder>.<beat>.<lasts, ms>.<state>.<stamp>`` in ASCII: 16 bytes in hexadecimal, a number that
grows by one with each renewal, for how long it is good, what the holder does, and a stamp over
all of that and the lease's own name. So nobody without a key of the fleet can make others wait.

A holder's 16 bytes are a mark (4), when its lease began in milliseconds since 1970 (6), and
random (6): so a copy of a lease grows old (:mod:`wasmkilnd.cache.fleet.holders`). v0.1.0 writes 16
random bytes there, and takes ours for such.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, replace
from enum import Enum

from wasmkilnd.cache.redis.guarded import TOKEN_BYTES
from wasmkilnd.cache.value.codec import CheckStamp, Stamp
from wasmkilnd.model import STAMP_BYTES

_SHAPE = re.compile(
    rb"([0-9a-f]{%d})\.([0-9]{1,15})\.([0-9]{1,15})\.([a-z]+)\.([0-9a-f]{%d})"
    % (TOKEN_BYTES, 2 * STAMP_BYTES)
)
_DATED = b"wkl2"
_TIME_BYTES, _RANDOM_BYTES = 6, 6

# What a stamp is over, so that no signature of another purpose can be taken for one.
_PURPOSE = b"wasmkiln lease\0"


class State(Enum):
    """What a holder does."""

    COMPILING = "compiling"
    STORING = "storing"
    """It has compiled, and the artifact waits to be stored: what takes long now is Redis."""
    FAILED = "failed"
    """It could not compile, and has let go; a note for who waits."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One state of a lease."""

    holder: str
    lasts_ms: int
    beat: int = 0
    state: State = State.COMPILING

    @classmethod
    def new(cls, lasts_ms: int, now_s: float | None = None) -> Lease:
        """Return a lease of a holder that nobody has seen before, which begins ``now_s``."""
        began_ms = round(1000 * (time.time() if now_s is None else now_s))
        dated = _DATED + began_ms.to_bytes(_TIME_BYTES, "big")
        return cls((dated + secrets.token_bytes(_RANDOM_BYTES)).hex(), lasts_ms)

    @property
    def began_s(self) -> float | None:
        """When the holder says that it began, in seconds since 1970; None if it does not say."""
        holder = bytes.fromhex(self.holder)
        if not holder.startswith(_DATED):
            return None
        return int.from_bytes(holder[len(_DATED) : len(_DATED) + _TIME_BYTES], "big") / 1000

    @property
    def token(self) -> bytes:
        """With what every state of this holder's lease begins, and of nobody else's."""
        return self.holder.encode()

    def next(self, state: State = State.COMPILING) -> Lease:
        """Return the lease as it is renewed."""
        return replace(self, beat=self.beat + 1, state=state)

    def written(self, name: bytes, stamp: Stamp) -> bytes:
        """Return what to store under ``name``."""
        text = f"{self.holder}.{self.beat}.{self.lasts_ms}.{self.state.value}".encode()
        return b"%b.%b" % (text, stamp(_message(name, text)).hex().encode())


def read_lease(value: bytes, name: bytes, check: CheckStamp) -> Lease | None:
    """Return the lease that was stored under ``name``, None if nobody trusted vouches for it."""
    found = _SHAPE.fullmatch(value)
    if found is None:
        return None
    holder, beat, lasts_ms, state, stamp = (group.decode() for group in found.groups())
    text = value[: found.end(4)]
    if state not in _STATES or check(_message(name, text), bytes.fromhex(stamp)):
        return None
    return Lease(holder, int(lasts_ms), int(beat), State(state))


_STATES = {state.value for state in State}


def _message(name: bytes, text: bytes) -> bytes:
    return b"%b%b\0%b" % (_PURPOSE, name, text)
