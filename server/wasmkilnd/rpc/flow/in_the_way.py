"""Which artifacts are sent no further, since lighter callers wait for their room."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from wasmkilnd.model import Artifact
from wasmkilnd.rpc.flow.pins import Pins, Waiting

# An artifact has to be taken this fast while a caller who holds less waits for room; by
# whoever would hold more than that caller even then, so many times as fast as it has
# waited seconds. So nobody keeps others out by taking just enough.
LEAST_PACE = 256 * 1024
_MOST_SERVED = 16  # at a time


def in_the_way(pins: Pins, paces: Mapping[Artifact, float], now: float) -> list[Artifact]:
    """Return one artifact for each call that waits, while room is too little.

    That which is taken slowest of the heaviest caller's. ``paces`` are bytes a second.
    """
    payers = pins.payers()
    ledger = pins.ledger(payers)
    candidates = sorted(
        payers, key=lambda artifact: (-ledger.held(payers[artifact]), paces[artifact])
    )
    going: list[Artifact] = []

    def least_pace(artifact: Artifact, waiting: Waiting) -> float:
        payer = payers[artifact]
        if payer == waiting.caller:
            return 1.0  # Its own: nothing makes way but what it takes nothing of.
        held, would_hold = ledger.held(payer), ledger.held(waiting.caller)
        if held <= would_hold:
            return 0.0
        if held <= would_hold + waiting.size_bytes:
            return LEAST_PACE
        return LEAST_PACE * max(1.0, now - waiting.since_s)

    for waiting in islice(pins.waiting, _MOST_SERVED):
        if not ledger.fits(waiting.caller, waiting.size_bytes):
            slow = (one for one in candidates if paces[one] < least_pace(one, waiting))
            artifact = next(slow, None)
            if artifact is None:
                continue
            candidates.remove(artifact)
            going.append(artifact)
            ledger.add(payers[artifact], -artifact.size_bytes)
        if ledger.fits(waiting.caller, waiting.size_bytes):
            ledger.add(waiting.caller, waiting.size_bytes)
    return going
