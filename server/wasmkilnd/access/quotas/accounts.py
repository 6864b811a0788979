"""The accounts of all identities with a quota, and how Stats and the metrics read them."""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

from wasmkilnd.access.quotas.limited import KINDS, LimitedAccount
from wasmkilnd.access.quotas.usage import Usage
from wasmkilnd.account import UNLIMITED, Account
from wasmkilnd.model import DEFAULT_NAMESPACE, Identity, Limits, QuotaLimits, QuotaReading
from wasmkilnd.reloadable import Reloadable

MOST_ACCOUNTS = 2048
"""How many identities have an account; beyond, the one that was seen longest ago is forgotten."""
MOST_READINGS = 1_000


class Accounts:
    """Finds the account of a call's identity. For one event loop."""

    def __init__(
        self,
        quota_of: Callable[[Identity], QuotaLimits | None],
        queue: Reloadable[Limits],
        *,
        kept_s: float,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST_ACCOUNTS,
    ) -> None:
        """``quota_of`` reads the policy in force, ``queue`` has the limits of an engine's queue.

        What is stored counts as kept for ``kept_s``. Usage of up to ``most`` identities is
        remembered, and that of all for which something goes on.
        """
        self._quota_of = quota_of
        self._queue = queue
        self._kept_s = kept_s
        self._clock = clock
        self._most = most
        # By namespace and name: tokens of two tenants may have the same name.
        self._known: OrderedDict[tuple[str, str], LimitedAccount] = OrderedDict()
        self._refused = dict.fromkeys(KINDS, 0)

    def __len__(self) -> int:
        """Return how many identities have an account."""
        return len(self._known)

    def of(self, identity: Identity) -> Account:
        """Return the account of ``identity``; one without limits if it has no quota."""
        limits = self._quota_of(identity) if identity.quota else None
        if limits is None:
            return UNLIMITED
        key = identity.namespace, identity.name
        account = self._known.get(key)
        if account is None:
            usage = Usage(self._clock, self._kept_s)
            account = LimitedAccount(limits, usage, self._queue, self._count_refusal)
            self._known[key] = account
            self._forget_some()
        else:
            self._known.move_to_end(key)
            account.limits = limits
        return account

    def readings(self, namespace: str = DEFAULT_NAMESPACE) -> Sequence[QuotaReading]:
        """Return what the identities of ``namespace`` have used, 1,000 rows at most.

        In the default namespace, return what all have used. Those that are nearest to their limit
        come first.
        """
        rows = (
            row
            for (where, name), account in list(self._known.items())
            if namespace in (DEFAULT_NAMESPACE, where)
            for row in _rows(name, account)
            if row.used or row.refused
        )
        return heapq.nlargest(MOST_READINGS, rows, key=lambda row: row.ratio)

    def by_kind(self) -> Mapping[str, tuple[float, int]]:
        """Return for each kind the largest part of a limit in use, and the number of refusals.

        Any thread may read.
        """
        largest = dict.fromkeys(KINDS, 0.0)
        for (_, name), account in list(self._known.items()):
            for row in _rows(name, account):
                largest[row.kind] = max(largest[row.kind], row.ratio)
        return {kind: (largest[kind], self._refused[kind]) for kind in KINDS}

    def _count_refusal(self, kind: str) -> None:
        self._refused[kind] += 1

    def _forget_some(self) -> None:
        """Forget the identity that was seen longest ago, of those that are idle."""
        if len(self._known) <= self._most:
            return
        newest = next(reversed(self._known))
        for key, account in self._known.items():
            if account.usage.idle and key != newest:
                del self._known[key]
                return


def _rows(name: str, account: LimitedAccount) -> Iterator[QuotaReading]:
    for kind, used, limit in account.readings():
        yield QuotaReading(name, kind, used, limit, account.refused[kind])
