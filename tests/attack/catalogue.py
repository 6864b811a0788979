"""All ways to attack, by name, each with a description and its function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.attack.target import Target
from tests.attack.ways import (
    artifacts,
    crowd,
    floods,
    half_sent,
    neighbours,
    replays,
    requests,
    watchers,
)


@dataclass(frozen=True)
class Way:
    """One way to attack."""

    what: str
    attack: Callable[[Target, float], Counter[str]]


WAYS = {
    "requests": Way("requests that are cheap to send and dear to parse", requests.attack),
    "half-sent": Way("1,600 unfinished HTTP requests to the admin port", half_sent.attack),
    "resets": Way("50,000 calls a second, each taken back at once", floods.resets),
    "frames": Way("other frames of HTTP/2, as fast as they go", floods.frames),
    "watchers": Way("1,100 connections, each with a call that never ends", watchers.attack),
    "unread": Way("artifacts of 26 MiB that nobody reads", artifacts.large),
    "late-invalid": Way("modules that are invalid in their last function", artifacts.late_invalid),
    "crowd": Way("compiles that take all time, beside an honest slow module", crowd.attack),
    "replays": Way("values put back, altered and swapped in Redis", replays.attack),
    "nobody": Way("signals and limits for workers, sent by nobody", neighbours.as_nobody),
    "insider": Way("workers killed and limited by who has their user", neighbours.as_the_worker),
}
