"""What stands in a lease: who holds it, and signs of its life.

``<holder>.<beat>.<lasts, ms>.<state>.<stamp>`` in ASCII: 16 random bytes in hexadecimal, a
number that grows by one with each renewal, for how long it is good, what the holder does, and
a stamp over all of that and the lease's own name. So nobody without a key of the fleet can
make others wait, and what was copied from an old lease does not stay alive.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from enum import Enum

from wasmkilnd.cache.codec import CheckStamp, Stamp
from wasmkilnd.cache.link import TOKEN_BYTES
from wasmkilnd.model import STAMP_BYTES

_SHAPE = re.compile(
    rb"([0-9a-f]{%d})\.([0-9]{1,15})\.([0-9]{1,15})\.([a-z]+)\.([0-9a-f]{%d})"
    % (TOKEN_BYTES, 2 * STAMP_BYTES)
)
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
    def new(cls, lasts_ms: int) -> Lease:
        """Answer a lease of a holder that nobody has seen before."""
        return cls(secrets.token_hex(TOKEN_BYTES // 2), lasts_ms)

    @property
    def token(self) -> bytes:
        """With what every state of this holder's lease begins, and of nobody else's."""
        return self.holder.encode()

    def next(self, state: State = State.COMPILING) -> Lease:
        """Answer the lease as it is renewed."""
        return replace(self, beat=self.beat + 1, state=state)

    def written(self, name: bytes, stamp: Stamp) -> bytes:
        """Answer what to store under ``name``."""
        text = f"{self.holder}.{self.beat}.{self.lasts_ms}.{self.state.value}".encode()
        return b"%b.%b" % (text, stamp(_message(name, text)).hex().encode())


def read_lease(value: bytes, name: bytes, check: CheckStamp) -> Lease | None:
    """Answer the lease that was stored under ``name``, None if nobody trusted vouches for it."""
    found = _SHAPE.fullmatch(value)
    if found is None:
        return None
    holder, beat, lasts_ms, state, stamp = (group.decode() for group in found.groups())
    text = value[: found.end(4)]
    if state not in _STATES or check(_message(name, text), bytes.fromhex(stamp)):
        return None
    return Lease(holder, int(lasts_ms), int(beat), State(state))


_STATES = {state.value for state in State}


class Pulse:
    """Tells a holder that lives from a lease that only stays.

    A holder that lives renews its lease with the next number; one that died loses it to the
    server's clock. What does neither was put there by somebody who only has copies.
    """

    def __init__(self) -> None:
        self._seen: Lease | None = None
        self._since_s = 0.0

    @property
    def state(self) -> State:
        """What the holder was seen to do last."""
        return self._seen.state if self._seen else State.COMPILING

    def lives(self, lease: Lease, now_s: float) -> bool:
        """Whether to go on waiting, given what the lease is at ``now_s``."""
        seen = self._seen
        if seen is None or seen.holder != lease.holder or lease.beat > seen.beat:
            self._seen, self._since_s = lease, now_s
            return True
        return lease == seen and now_s - self._since_s <= lease.lasts_ms / 1000


def _message(name: bytes, text: bytes) -> bytes:
    return b"%b%b\0%b" % (_PURPOSE, name, text)
