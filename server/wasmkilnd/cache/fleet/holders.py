"""Tells live holders of leases from leases that are left over or were written back.

Anyone who may write to the server can copy a lease and write it back later, with a valid stamp.
So a daemon remembers what became of the holders that it saw, and checks when a lease began.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from wasmkilnd.cache.fleet.lease import Lease, State

CLOCKS_DIFFER_S = 60.0
"""How much the clocks of a fleet's daemons may differ."""

_MAX_REMEMBERED = 10_000
# Leases of v0.1.0 do not say when they began, so their copies never grow too old: wait for such a
# holder only as long as this many leases.
_MAX_LEASES_UNDATED = 2


def _no_bound() -> float:
    return math.inf


class Sightings:
    """What one call has seen of the leases that it waits for."""

    def __init__(self, max_wait_s: Callable[[], float] = _no_bound) -> None:
        """``max_wait_s`` returns how long a call waits; an older lease is not believed."""
        self.max_wait_s = max_wait_s
        self.state = State.COMPILING
        """What the holder did when it was last seen."""
        self.holder = ""
        """The holder that was seen last."""
        self.holders = 0
        """How many holders were seen, one after the other."""

    def add(self, lease: Lease) -> None:
        """Add a look at a lease whose holder is alive."""
        self.holders += lease.holder != self.holder
        self.holder, self.state = lease.holder, lease.state


class LeaseHolders:
    """What one daemon knows of the holders of all leases.

    A live holder renews its lease with a higher number; a dead holder's lease expires on the
    server. If a lease does neither, no call waits for its holder again, and neither for a
    holder that was replaced or that released its lease: none of these comes back.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock`` is the time of day."""
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def is_alive(self, lease: Lease, sightings: Sightings, now_s: float) -> bool:
        """Return whether the holder of ``lease``, as it was read at ``now_s``, is alive."""
        if sightings.holder and sightings.holder != lease.holder:
            self.mark_ended(sightings.holder)
        seen = self._seen.get(lease.holder)
        if seen is None:
            seen = _Seen(lease, now_s, now_s, ended=self._is_too_old(lease, sightings))
            self._remember(lease.holder, seen)
        if seen.ended or not seen.is_alive(lease, now_s):
            seen.ended = True
            return False
        sightings.add(lease)
        return True

    def mark_ended(self, holder: str) -> None:
        """Never wait for ``holder`` again."""
        seen = self._seen.get(holder)
        if seen is not None:
            seen.ended = True
        elif holder:
            self._remember(holder, _Seen(Lease(holder, 0), 0.0, 0.0, ended=True))

    def _is_too_old(self, lease: Lease, sightings: Sightings) -> bool:
        began_s = lease.began_s
        if began_s is None:
            return False
        age_s = self._clock() - began_s
        return not -CLOCKS_DIFFER_S <= age_s <= sightings.max_wait_s() + CLOCKS_DIFFER_S

    def _remember(self, holder: str, seen: _Seen) -> None:
        self._seen[holder] = seen
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)


@dataclass(slots=True)
class _Seen:
    """A holder's last lease, since when it is unchanged, and when the holder was first seen."""

    lease: Lease
    since_s: float
    first_seen_s: float
    ended: bool

    def is_alive(self, lease: Lease, now_s: float) -> bool:
        lasts_s = lease.lasts_ms / 1000
        if lease.began_s is None and now_s - self.first_seen_s > _MAX_LEASES_UNDATED * lasts_s:
            return False
        if lease.beat > self.lease.beat:
            self.lease, self.since_s = lease, now_s
            return True
        return lease == self.lease and now_s - self.since_s <= lasts_s
