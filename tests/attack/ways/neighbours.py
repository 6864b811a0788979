"""Other services of the machine attack workers and jobs."""

from __future__ import annotations

import resource
import signal
import time
from collections import Counter
from itertools import cycle

from tests.attack.target import Target
from tests.e2e.foreign import NOBODY, kill, may_limit, may_signal, spoil
from tests.e2e.processes import workers_of

# A worker that is lost is replaced; one that is lost as often as it comes serves nobody.
_PAUSE_S = 1.5


def as_nobody(target: Target, until_s: float) -> Counter[str]:
    """Try to stop each worker, and to lower its limits, as a service without a user of its own."""
    done: Counter[str] = Counter()
    while time.monotonic() < until_s:
        for pid in workers_of(target.pid):
            stopped = may_signal(NOBODY, pid, signal.SIGSTOP)
            done[f"signal {_said(stopped)}"] += 1
            limited = may_limit(NOBODY, pid, resource.RLIMIT_NOFILE, 1)
            done[f"limit {_said(limited)}"] += 1
    return done


def as_the_worker(target: Target, until_s: float) -> Counter[str]:
    """Kill workers and lower their limits, as a process that has their user."""
    done: Counter[str] = Counter()
    for name, harm in cycle({"spoiled": spoil, "killed": kill}.items()):
        if time.monotonic() >= until_s:
            break
        for pid in workers_of(target.pid)[:1]:
            harm(pid)
            done[name] += 1
        time.sleep(_PAUSE_S)
    return done


def _said(was_allowed: bool) -> str:
    return "allowed" if was_allowed else "refused"
