"""The value of a lease: its holder, and its holder's heartbeat.

``<holder>.<beat>.<lasts, ms>.<state>.<stamp>`` in ASCII: 16 bytes in hexadecimal, a number that
grows by one with each renewal, how long the lease lasts, what the holder does, and a stamp over
all of that and the name of the lease's key. So only a daemon with a trusted key can make others
wait.

The holder's 16 bytes are ``wkl2`` (4), when the lease began in milliseconds since 1970 (6), and
random bytes (6): so a copy of a lease grows old (:mod:`wasmkilnd.cache.fleet.holders`). v0.1.0
writes 16 random bytes, and takes these for random ones.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, replace
from enum import Enum

from wasmkilnd.cache.value.format import CheckStamp, Stamp
from wasmkilnd.model import STAMP_BYTES

TOKEN_BYTES = 32
"""The length of a token: the first bytes of a lease, which name its holder."""

_SHAPE = re.compile(
    rb"([0-9a-f]{%d})\.([0-9]{1,15})\.([0-9]{1,15})\.([a-z]+)\.([0-9a-f]{%d})"
    % (TOKEN_BYTES, 2 * STAMP_BYTES)
)
_DATED = b"wkl2"
_TIME_BYTES, _RANDOM_BYTES = 6, 6

# Part of what is stamped, so that no stamp of another kind of value passes for a lease's.
_PURPOSE = b"wasmkiln lease\0"


class State(Enum):
    """What a holder does."""

    COMPILING = "compiling"
    STORING = "storing"
    """It has compiled, and the artifact waits to be stored: the wait is for Redis now."""
    FAILED = "failed"
    """It could not compile and released the lease; a note for those who wait."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease, as one renewal wrote it."""

    holder: str
    lasts_ms: int
    beat: int = 0
    state: State = State.COMPILING

    @classmethod
    def new(cls, lasts_ms: int, now_s: float | None = None) -> Lease:
        """Return the lease of a new holder, beginning at ``now_s``."""
        began_ms = round(1000 * (time.time() if now_s is None else now_s))
        dated = _DATED + began_ms.to_bytes(_TIME_BYTES, "big")
        return cls((dated + secrets.token_bytes(_RANDOM_BYTES)).hex(), lasts_ms)

    @property
    def began_s(self) -> float | None:
        """When the lease began, in seconds since 1970; None for a lease of v0.1.0."""
        holder = bytes.fromhex(self.holder)
        if not holder.startswith(_DATED):
            return None
        return int.from_bytes(holder[len(_DATED) : len(_DATED) + _TIME_BYTES], "big") / 1000

    @property
    def token(self) -> bytes:
        """The first bytes of every renewal of this holder's lease, and of no other lease."""
        return self.holder.encode()

    def next(self, state: State = State.COMPILING) -> Lease:
        """Return the next renewal."""
        return replace(self, beat=self.beat + 1, state=state)

    def written(self, name: bytes, stamp: Stamp) -> bytes:
        """Return the value to store under the key ``name``."""
        text = f"{self.holder}.{self.beat}.{self.lasts_ms}.{self.state.value}".encode()
        return b"%b.%b" % (text, stamp(_message(name, text)).hex().encode())


def read_lease(value: bytes, name: bytes, check: CheckStamp) -> Lease | None:
    """Return the lease stored under ``name``; None if no trusted key vouches for it."""
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
