"""How much work one identity may have the daemon do over time: quotas, as buckets of tokens.

The policy names quotas and gives them to identities. Each identity with one has buckets of its own:
a bucket holds as many tokens as its limit says, and gets as many back, evenly, in each period.

=========================  ======================================================================
``calls_per_minute``       calls of ModuleService and AdminService, taken as they come in
``compiles_per_minute``    jobs: taken when a call begins one, not for hits, nor for those that join
``stored_bytes_per_hour``  modules and artifacts, taken once they are stored: so a bucket may get
                           emptier than empty, and no job begins until it has a token again
=========================  ======================================================================

Promises: memory is bounded, however many identities there are; a reload changes limits and keeps
what is used; a quota that is taken out of the policy leaves no figure behind; a restart forgets
all use; other daemons count for themselves.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from wasmkilnd import errors
from wasmkilnd.model import DEFAULT_NAMESPACE, Identity, QuotaReading

CALLS: Final = "calls_per_minute"
COMPILES: Final = "compiles_per_minute"
STORED: Final = "stored_bytes_per_hour"
# Every kind of quota, under its name in the policy.
KINDS: Final = (CALLS, COMPILES, STORED)
# How many identities have buckets; beyond, the one that was seen longest ago is forgotten.
MOST_IDENTITIES: Final = 2048
MOST_READINGS: Final = 1_000

# The tokens in each bucket, by kind. A kind that is missing has no limit.
Limits: TypeAlias = Mapping[str, float]

_PERIOD_S = {CALLS: 60.0, COMPILES: 60.0, STORED: 3600.0}
_MORE = {CALLS: "make another call", COMPILES: "begin another compilation", STORED: "store more"}
_LEAST_RETRY_S = 0.1
_ROUNDING = 1e-9


@dataclass(eq=False, repr=False)
class Quota:
    """The buckets of one identity. For one event loop; any thread may read.

    - ``policy``: what the limits were read from.
    - ``refusals``: counts those of all quotas by kind.
    """

    limits: Limits
    refusals: Counter[str] = field(default_factory=Counter)
    policy: object = None
    refused: Counter[str] = field(default_factory=Counter)
    _taken: dict[str, tuple[float, float]] = field(default_factory=dict)  # how many by when

    def call(self) -> None:
        """Count a call. Raises QUOTA_EXCEEDED."""
        if self.limits:
            self._check(CALLS)
            self._take(CALLS, 1)

    def compile(self) -> None:
        """Count a job. Raises QUOTA_EXCEEDED, also while nothing more may be stored."""
        self._check(STORED)
        self._check(COMPILES)
        self._take(COMPILES, 1)

    def may_compile(self) -> bool:
        """Return whether ``compile`` would count a job."""
        return not (self._missing(STORED) or self._missing(COMPILES))

    def opinion(self) -> None:
        """Count a job more of work that has begun: it is not refused."""
        self._take(COMPILES, 1)

    def stored(self, size_bytes: int) -> None:
        """Count a module or an artifact that is stored."""
        self._take(STORED, size_bytes)

    def used(self, kind: str) -> float:
        """Return how many tokens have not come back yet."""
        taken, when_s = self._taken.get(kind, (0.0, 0.0))
        return max(0.0, taken - (time.monotonic() - when_s) * self.limits[kind] / _PERIOD_S[kind])

    def _take(self, kind: str, tokens: float) -> None:
        if kind in self.limits:
            self._taken[kind] = self.used(kind) + tokens, time.monotonic()

    def _missing(self, kind: str) -> float:
        """Return how much of a token is missing, 0 for nothing."""
        if (limit := self.limits.get(kind)) is None:
            return 0.0
        # A bucket smaller than one token would never have one.
        missing = self.used(kind) + 1 - max(1.0, limit)
        return missing if missing > _ROUNDING else 0.0

    def _check(self, kind: str) -> None:
        if not (missing := self._missing(kind)):
            return
        limit = self.limits[kind]
        self.refused[kind] += 1
        self.refusals[kind] += 1
        unit = "bytes per hour" if kind == STORED else "per minute"
        what = f"cannot {_MORE[kind]} now: your quota allows {limit:,.12g} {unit}"
        retry_after_s = max(_LEAST_RETRY_S, missing * _PERIOD_S[kind] / limit)
        raise errors.quota_exceeded(kind, what, retry_after_s)


# That of callers without a quota.
UNLIMITED: Final = Quota({})


def unlimited(_: Identity) -> Quota:
    """Return the quota of every identity where there are none."""
    return UNLIMITED


@dataclass(eq=False, repr=False)
class Quotas:
    """Finds the quota of a call's identity. For one event loop.

    - ``in_force``: returns the quotas by name: another object whenever the policy changed.
    - ``known``: by namespace and name: tokens of two tenants may have the same name.
    """

    in_force: Callable[[], Mapping[str, Limits]]
    known: dict[tuple[str, str], Quota] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    def of(self, identity: Identity) -> Quota:
        """Return the quota of ``identity``: one without limits if the policy gives it none."""
        policy = self.in_force()
        if not identity.quota or (limits := policy.get(identity.quota)) is None:
            return UNLIMITED
        key = identity.namespace, identity.name
        quota = self.known.pop(key, None) or Quota(limits, self.refused)
        self.known[key] = quota  # As the last one: that which was seen longest ago is the first.
        if len(self.known) > MOST_IDENTITIES:
            del self.known[next(iter(self.known))]
        quota.limits, quota.policy = limits, policy
        return quota

    def readings(self, namespace: str = DEFAULT_NAMESPACE) -> Sequence[QuotaReading]:
        """Return what the identities of ``namespace`` have used, 1,000 rows at most.

        In the default namespace, return what all have used. Those that are nearest to their limit
        come first. An identity that has not called since the policy changed has no row.
        """
        rows = (
            row
            for where, row in self._rows()
            if namespace in (DEFAULT_NAMESPACE, where) and (row.used or row.refused)
        )
        return heapq.nlargest(MOST_READINGS, rows, key=lambda row: row.ratio)

    def by_kind(self) -> Mapping[str, tuple[float, int]]:
        """Return for each kind the largest part of a limit in use, and the number of refusals.

        Any thread may read.
        """
        largest = dict.fromkeys(KINDS, 0.0)
        for _, row in self._rows():
            largest[row.kind] = max(largest[row.kind], row.ratio)
        return {kind: (largest[kind], self.refused[kind]) for kind in KINDS}

    def _rows(self) -> Iterator[tuple[str, QuotaReading]]:
        policy = self.in_force()
        for (namespace, name), quota in list(self.known.items()):
            if quota.policy is policy:
                for kind, limit in quota.limits.items():
                    used, refused = quota.used(kind), quota.refused[kind]
                    yield namespace, QuotaReading(name, kind, used, limit, refused)
