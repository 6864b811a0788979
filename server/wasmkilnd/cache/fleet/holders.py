"""Tells holders of leases that live from leases that only stay, or were put back.

Whoever may write to the server can copy a lease and put it back later, and its stamp is good.
So a daemon remembers what became of the holders that it saw, and asks when a lease began.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from wasmkilnd.cache.fleet.lease import Lease, State

CLOCKS_DIFFER_S = 60.0
"""By how much the clocks of a fleet's daemons may differ."""

_MAX_REMEMBERED = 10_000
# v0.1.0's leases do not say when they began: their copies never get too old.
_UNDATED_LEASES = 2


def _no_bound() -> float:
    return math.inf


class Pulse:
    """What one call saw of the leases that it waited for."""

    def __init__(self, patience_s: Callable[[], float] = _no_bound) -> None:
        """A call waits no longer than ``patience_s`` says, so no lease may be much older."""
        self.patience_s = patience_s
        self.state = State.COMPILING
        """What the holder was seen to do last."""
        self.holder = ""
        """Who holds the lease, as it was seen last."""
        self.holders = 0
        """How many held it, one after the other."""

    def saw(self, lease: Lease) -> None:
        """Take note of a lease that is waited for."""
        self.holders += lease.holder != self.holder
        self.holder, self.state = lease.holder, lease.state


class LeaseHolders:
    """What one daemon knows of the holders of all leases.

    A holder that lives renews its lease with the next number; one that died loses it to the
    server's clock. Whose lease does neither is waited for no more, now or ever, and so is a
    holder that was replaced or let go: none of them comes back.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock`` is the time of day."""
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def lives(self, lease: Lease, pulse: Pulse, now_s: float) -> bool:
        """Return whether to go on waiting, given what the lease is at ``now_s``."""
        if pulse.holder and pulse.holder != lease.holder:
            self.over(pulse.holder)
        seen = self._seen.get(lease.holder)
        if seen is None:
            seen = _Seen(lease, now_s, now_s, is_over=self._is_too_old(lease, pulse))
            self._remember(lease.holder, seen)
        if seen.is_over or not seen.lives(lease, now_s):
            seen.is_over = True
            return False
        pulse.saw(lease)
        return True

    def over(self, holder: str) -> None:
        """Never wait for ``holder`` again."""
        seen = self._seen.get(holder)
        if seen is not None:
            seen.is_over = True
        elif holder:
            self._remember(holder, _Seen(Lease(holder, 0), 0.0, 0.0, is_over=True))

    def _is_too_old(self, lease: Lease, pulse: Pulse) -> bool:
        began_s = lease.began_s
        if began_s is None:
            return False
        age_s = self._clock() - began_s
        return not -CLOCKS_DIFFER_S <= age_s <= pulse.patience_s() + CLOCKS_DIFFER_S

    def _remember(self, holder: str, seen: _Seen) -> None:
        self._seen[holder] = seen
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)


@dataclass(slots=True)
class _Seen:
    """A holder's lease as it was seen last, and since when it is so."""

    lease: Lease
    since_s: float
    first_s: float
    is_over: bool

    def lives(self, lease: Lease, now_s: float) -> bool:
        lasts_s = lease.lasts_ms / 1000
        if lease.began_s is None and now_s - self.first_s > _UNDATED_LEASES * lasts_s:
            return False
        if lease.beat > self.lease.beat:
            self.lease, self.since_s = lease, now_s
            return True
        return lease == self.lease and now_s - self.since_s <= lasts_s
