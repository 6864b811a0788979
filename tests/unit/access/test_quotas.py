"""Accounts: what each quota refuses, what it gives back, and what Stats reads of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from wasmkilnd.access.quotas.accounts import MOST_READINGS, Accounts
from wasmkilnd.access.quotas.limited import KINDS
from wasmkilnd.account import UNLIMITED, Account
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import ALL_ROLES, Identity, QuotaLimits
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.telemetry.metrics.catalogue import QUOTAS

from tests.doubles.clock import Clock
from tests.unit.engines.limits import LIMITS

CI = Identity("token:ci", ALL_ROLES, quota="small")
ENGINE = "engine-1"


class Site:
    """Accounts under a policy that a test changes, and a clock that it moves."""

    def __init__(self, most: int = 100) -> None:
        self.clock = Clock()
        self.quotas: dict[str, QuotaLimits] = {}
        self.accounts = Accounts(
            lambda identity: self.quotas.get(identity.quota),
            Reloadable(replace(LIMITS, queue_length=10, queue_bytes=1000)),
            kept_s=600.0,
            clock=self.clock,
            most=most,
        )

    def allow(self, identity: Identity = CI, **most: float) -> Account:
        self.quotas[identity.quota] = replace(QuotaLimits(identity.quota), **most)  # type: ignore[arg-type]
        return self.accounts.of(identity)

    def used(self, kind: str) -> float:
        return {row.kind: row.used for row in self.accounts.readings()}.get(kind, 0.0)


@pytest.fixture
def site() -> Site:
    return Site()


def refused(kind: str, call: object, *arguments: object, **named: object) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    failure = caught.value
    assert failure.reason is Reason.QUOTA_EXCEEDED
    assert failure.metadata == {"quota": kind}
    assert failure.retry_after_s
    assert failure.retry_after_s > 0
    assert failure.message.startswith("cannot ")
    return failure


def test_the_metrics_know_every_kind() -> None:
    assert QUOTAS == KINDS


def test_an_identity_without_a_quota_has_no_account(site: Site) -> None:
    assert site.accounts.of(replace(CI, quota="")) is UNLIMITED
    assert site.accounts.of(replace(CI, quota="unknown")) is UNLIMITED
    assert len(site.accounts) == 0


def test_calls_at_once(site: Site) -> None:
    account = site.allow(calls=2)
    account.enter()
    account.enter()
    refused("calls", account.enter)
    account.leave()
    account.enter()
    assert site.used("calls") == 2


def test_bytes_in_flight_and_a_lone_request_of_any_size(site: Site) -> None:
    account = site.allow(bytes_in_flight=100)
    account.hold(500)
    refused("bytes_in_flight", account.hold, 1)
    account.release(500)
    account.hold(60)
    account.hold(40)
    refused("bytes_in_flight", account.hold, 1)
    account.hold_more(7)
    assert site.used("bytes_in_flight") == 107


def test_a_module_that_arrived_is_not_let_in_twice(site: Site) -> None:
    account = site.allow(bytes_in_flight=100)
    account.hold(80)
    refused("bytes_in_flight", account.start, 80, compiles=True, arrived=False)
    bill = account.start(80, compiles=True, arrived=True)
    account.release(80)
    assert site.used("bytes_in_flight") == 80
    bill.close()
    bill.close()
    assert site.used("bytes_in_flight") == 0


def test_a_share_of_the_queue_and_a_lone_job_always(site: Site) -> None:
    bill = site.allow(queue_share=0.2).start(1, compiles=True, arrived=True)
    assert bill.no_place_in_queue(ENGINE, 999, lambda: 3.0) is None
    with bill.waiting(ENGINE, 100):
        assert bill.no_place_in_queue(ENGINE, 100, lambda: 3.0) is None
        assert bill.no_place_in_queue(ENGINE, 101, lambda: 3.0), "too many bytes"
        assert bill.no_place_in_queue("engine-2", 999, lambda: 3.0) is None, "another queue"
        with bill.waiting(ENGINE, 10):
            refusal = bill.no_place_in_queue(ENGINE, 1, lambda: 3.0)
            assert refusal
            assert refusal.metadata == {"quota": "queue_share"}
            assert refusal.retry_after_s == 3.0
            assert site.used("queue_share") == 0.2
    assert bill.no_place_in_queue(ENGINE, 1, lambda: 3.0) is None


def test_compiles_per_minute_counts_those_whose_job_began(site: Site) -> None:
    account = site.allow(compiles_per_minute=2)
    found_elsewhere = account.start(1, compiles=True, arrived=True)
    compiled = account.start(1, compiles=True, arrived=True)
    refusal = refused("compiles_per_minute", account.start, 1, compiles=True, arrived=True)
    assert refusal.retry_after_s == 30.0
    account.start(1, compiles=False, arrived=True).close()
    compiled.job_began()
    compiled.close()
    found_elsewhere.close()
    account.start(1, compiles=True, arrived=True).job_began()
    refused("compiles_per_minute", account.start, 1, compiles=True, arrived=True)
    site.clock.now_s += 30
    account.start(1, compiles=True, arrived=True)


def test_cpu_time_is_charged_afterwards_and_refused_until_the_hour_is_over(site: Site) -> None:
    account = site.allow(cpu_seconds_per_hour=10)
    bill = account.start(1, compiles=True, arrived=True)
    bill.job_ended(9.0)
    other = account.start(1, compiles=False, arrived=True)
    other.job_ended(2.0)
    refusal = refused("cpu_seconds_per_hour", account.start, 1, compiles=False, arrived=True)
    assert account.behind() is None
    assert site.used("cpu_seconds_per_hour") == 11.0
    site.clock.now_s += refusal.retry_after_s or 0.0
    account.start(1, compiles=True, arrived=True)
    assert account.behind() is not None


def test_bytes_kept_count_until_they_expire(site: Site) -> None:
    account = site.allow(bytes_kept=1000)
    bill = account.start(1, compiles=True, arrived=True)
    bill.stored(1000)
    refusal = refused("bytes_kept", account.start, 1, compiles=False, arrived=True)
    site.clock.now_s += refusal.retry_after_s or 0.0
    account.start(1, compiles=True, arrived=True)


def test_compiles_behind_are_charged_and_not_refused(site: Site) -> None:
    account = site.allow(cpu_seconds_per_hour=10, compiles_per_minute=1, queue_share=0.1)
    payer = account.behind()
    assert payer
    for _ in range(3):
        bill = payer.start(100, compiles=True, arrived=False)
        with bill.waiting(ENGINE, 100):
            assert bill.no_place_in_queue(ENGINE, 100, lambda: 1.0) is None
        bill.job_began()
        bill.job_ended(4.0)
        bill.close()
    assert account.behind() is None
    assert site.used("cpu_seconds_per_hour") == 12.0
    assert site.used("compiles_per_minute") == 0


def test_two_identities_with_one_quota_count_apart(site: Site) -> None:
    account = site.allow(calls=1)
    account.enter()
    refused("calls", account.enter)
    site.accounts.of(replace(CI, name="token:other")).enter()


def test_tokens_of_one_name_in_two_namespaces_count_apart(site: Site) -> None:
    ours, theirs = (replace(CI, namespace=each) for each in ("ours", "theirs"))
    site.allow(ours, calls=1).enter()
    refused("calls", site.accounts.of(ours).enter)
    site.accounts.of(theirs).enter()
    [row] = site.accounts.readings("theirs")
    assert (row.used, row.refused) == (1, 0)
    assert len(site.accounts.readings()) == 2


def test_a_reload_changes_limits_and_keeps_usage(site: Site) -> None:
    account = site.allow(calls=1, cpu_seconds_per_hour=10)
    account.enter()
    account.start(1, compiles=True, arrived=True).job_ended(5.0)
    account = site.allow(calls=3, cpu_seconds_per_hour=5)
    account.enter()
    refused("cpu_seconds_per_hour", account.start, 1, compiles=True, arrived=True)
    site.quotas.clear()
    assert site.accounts.of(CI) is UNLIMITED
    account.leave()
    account = site.allow(calls=1)
    refused("calls", account.enter)


def test_memory_is_bounded_and_what_goes_on_is_kept() -> None:
    site = Site(most=10)
    busy = site.allow(calls=1)
    busy.enter()
    for index in range(1000):
        site.accounts.of(replace(CI, name=f"jwt:{index}")).enter()
        site.accounts.of(replace(CI, name=f"jwt:{index}")).leave()
    assert len(site.accounts) == 10
    refused("calls", site.accounts.of(CI).enter)


def test_readings_are_those_of_a_namespace_and_bounded(site: Site) -> None:
    ours = replace(CI, name="token:ours", namespace="ours")
    site.allow(ours, calls=4).enter()
    site.accounts.of(replace(ours, name="token:silent"))
    site.accounts.of(replace(CI, name="token:theirs", namespace="theirs")).enter()
    assert [(row.identity, row.kind, row.used) for row in site.accounts.readings("ours")] == [
        ("token:ours", "calls", 1)
    ]
    assert len(site.accounts.readings()) == 2
    assert site.accounts.by_kind()["calls"] == (0.25, 0)
    site = Site(most=2 * MOST_READINGS)
    account = site.allow(calls=5)
    for index in range(MOST_READINGS + 50):
        site.accounts.of(replace(CI, name=f"jwt:{index}")).enter()
    for _ in range(5):
        account.enter()
    refused("calls", account.enter)
    rows = site.accounts.readings()
    assert len(rows) == MOST_READINGS
    assert (rows[0].identity, rows[0].ratio, rows[0].refused) == ("token:ci", 1.0, 1)
    assert site.accounts.by_kind()["calls"] == (1.0, 1)


def test_whatever_happens_nothing_stays_counted(site: Site) -> None:
    """Random calls, held bytes and works: once all have ended, the account is as new."""
    chance = random.Random(7)
    account = site.allow(calls=5, bytes_in_flight=500, compiles_per_minute=1000)
    ends: list[Callable[[], None]] = []

    def begin() -> Callable[[], None]:
        size = chance.randrange(200)
        what = chance.choice(("call", "bytes", "work"))
        if what == "call":
            account.enter()
            return account.leave
        if what == "bytes":
            account.hold(size)
            return lambda: account.release(size)
        return account.start(size, compiles=True, arrived=chance.random() < 0.5).close

    for _ in range(5000):
        site.clock.now_s += 0.01
        if ends and chance.random() < 0.5:
            ends.pop(chance.randrange(len(ends)))()
        else:
            with suppress(WasmkilnError):
                ends.append(begin())
    for end in ends:
        end()
    site.clock.now_s += 60
    assert {kind: ratio for kind, (ratio, _) in site.accounts.by_kind().items()} == dict.fromkeys(
        KINDS, 0.0
    )
    assert sum(count for _, count in site.accounts.by_kind().values()) > 100
