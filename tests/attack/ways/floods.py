"""Send HTTP/2 frames as fast as possible: calls cancelled at once, and frames without calls."""

from __future__ import annotations

import time
from collections import Counter
from itertools import cycle

from tests.attack.target import Target
from tests.e2e.floods import KINDS, Flood

PER_SECOND = 50_000
# Long enough to harm others, and so short that each kind has its turn.
_TURN_S = 1.5


def resets(target: Target, until_s: float) -> Counter[str]:
    """Begin and cancel 50,000 calls a second, over a new connection whenever one is closed."""
    return _flood(target, until_s, ["resets"], until_s - time.monotonic())


def frames(target: Target, until_s: float) -> Counter[str]:
    """Send every other kind of frame in turn."""
    return _flood(target, until_s, [kind for kind in KINDS if kind != "resets"], _TURN_S)


def _flood(target: Target, until_s: float, kinds: list[str], turn_s: float) -> Counter[str]:
    done: Counter[str] = Counter()
    for kind in cycle(kinds):
        turn_until_s = min(until_s, time.monotonic() + turn_s)
        while (left_s := turn_until_s - time.monotonic()) > 0:
            try:
                with Flood(target.address) as flood:
                    sent, _ = flood.run(KINDS[kind](flood), PER_SECOND, left_s)
                    done["closed by the daemon"] += flood.closed.is_set()
            except OSError:
                done["refused"] += 1
                time.sleep(0.01)
            else:
                done["connections"] += 1
                done[kind] += sent
        if time.monotonic() >= until_s:
            return done
    raise AssertionError("no kind of flood is left")
