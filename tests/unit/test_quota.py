"""Quotas and shares: what each bucket refuses, what time gives back, who is charged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.compile import Request, Terms
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import ALL_ROLES, Identity
from wasmkilnd.quota import MOST_READINGS, Limits, Quota, Quotas
from wasmkilnd.waits.flights import FairShare, Waiter

from tests.doubles.clock import Clock
from tests.unit.engines.test_pool import settled
from tests.unit.services import CORE, Rig

CI = Identity("token:ci", ALL_ROLES, quota="small")


class Site:
    """Quotas under a policy that a test changes, and a clock that it moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 100) -> None:
        self.clock = Clock()
        clock = SimpleNamespace(monotonic=self.clock)
        monkeypatch.setattr("wasmkilnd.quota.time", clock)
        monkeypatch.setattr("wasmkilnd.quota.MOST_IDENTITIES", most)
        self.policy: dict[str, Limits] = {}
        self.quotas = Quotas(lambda: self.policy)

    def allow(self, identity: Identity = CI, **limits: float) -> Quota:
        """Put a policy in force that gives ``identity`` so much, and have it call."""
        self.policy = {**self.policy, identity.quota: limits}
        return self.quotas.of(identity)

    def used(self) -> dict[str, float]:
        return {row.kind: row.used for row in self.quotas.readings()}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def refused(kind: str, act: Callable[[], None]) -> float:
    """Check that a quota refuses; return how many seconds it says to wait."""
    with pytest.raises(WasmkilnError) as caught:
        act()
    failure = caught.value
    assert failure.reason is Reason.QUOTA_EXCEEDED
    assert failure.metadata == {"quota": kind}
    assert failure.message.startswith("cannot ")
    assert failure.retry_after_s
    return failure.retry_after_s


def test_calls_come_back_evenly(site: Site) -> None:
    quota = site.allow(calls_per_minute=2)
    quota.call()
    quota.call()
    assert refused("calls_per_minute", quota.call) == 30
    site.clock.now_s += 29.9
    refused("calls_per_minute", quota.call)
    site.clock.now_s += 0.1
    quota.call()
    assert site.used() == {"calls_per_minute": 2}
    site.clock.now_s += 1000
    quota.call()
    quota.call()
    refused("calls_per_minute", quota.call)


def test_stored_bytes_are_charged_afterwards_and_keep_new_work_out(site: Site) -> None:
    quota = site.allow(stored_bytes_per_hour=3600)
    quota.compile()
    quota.stored(3600)
    quota.stored(600)
    wait_s = refused("stored_bytes_per_hour", quota.compile)
    assert wait_s == 601
    quota.call()
    assert site.used() == {"stored_bytes_per_hour": 4200}
    site.clock.now_s += wait_s
    quota.compile()


def test_more_jobs_of_work_that_has_begun_are_charged_and_not_refused(site: Site) -> None:
    quota = site.allow(compiles_per_minute=1)
    quota.compile()
    quota.opinion()
    assert refused("compiles_per_minute", quota.compile) == 120


def test_tokens_of_one_name_in_two_namespaces_count_apart(site: Site) -> None:
    ours, theirs = (replace(CI, namespace=each) for each in ("ours", "theirs"))
    site.allow(ours, calls_per_minute=1).call()
    refused("calls_per_minute", site.quotas.of(ours).call)
    site.quotas.of(theirs).call()
    [row] = site.quotas.readings("theirs")
    assert (row.used, row.refused) == (1, 0)
    assert len(site.quotas.readings()) == 2


def test_memory_is_bounded_and_who_called_last_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(monkeypatch, most=10)
    site.allow(calls_per_minute=1).call()
    for index in range(1000):
        site.quotas.of(replace(CI, name=f"jwt:{index}")).call()
        site.quotas.of(CI)
    assert len(site.quotas.known) == 10
    refused("calls_per_minute", site.quotas.of(CI).call)
    site.quotas.of(replace(CI, name="jwt:0")).call()


def test_readings_are_those_of_a_namespace_and_bounded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = replace(CI, name="token:ours", namespace="ours")
    site.allow(ours, calls_per_minute=4).call()
    site.quotas.of(replace(ours, name="token:silent"))
    site.quotas.of(replace(CI, name="token:theirs", namespace="theirs")).call()
    assert [(row.identity, row.kind, row.used) for row in site.quotas.readings("ours")] == [
        ("token:ours", "calls_per_minute", 1)
    ]
    assert len(site.quotas.readings()) == 2
    assert site.quotas.by_kind()["calls_per_minute"] == (0.25, 0)
    site = Site(monkeypatch, most=2 * MOST_READINGS)
    quota = site.allow(calls_per_minute=5)
    for index in range(MOST_READINGS + 50):
        site.quotas.of(replace(CI, name=f"jwt:{index}")).call()
    for _ in range(5):
        quota.call()
    refused("calls_per_minute", quota.call)
    rows = site.quotas.readings()
    assert len(rows) == MOST_READINGS
    assert (rows[0].identity, rows[0].ratio, rows[0].refused) == ("token:ci", 1.0, 1)
    assert site.quotas.by_kind()["calls_per_minute"] == (1.0, 1)


# Where the services charge what they do.


@pytest.fixture
def rig() -> Rig:
    return Rig()


def asked(number: int, quota: Quota, **wishes: object) -> Request:
    """Return a request for a module of its own."""
    wasm = CORE + bytes([0, 2, 1, number])
    return Request(wasm=wasm, terms=Terms(Waiter("ci"), quota=quota), **wishes)  # type: ignore[arg-type]


async def test_a_compile_behind_fast_code_counts_for_who_asked(rig: Rig, site: Site) -> None:
    quota = site.allow(compiles_per_minute=3)
    await rig.compiler.compile(asked(1, quota, engine="wasmtime", accept_fast=True))
    await behind_ended(rig)
    assert rig.engines.compiles == 2
    assert site.used() == {"compiles_per_minute": 2}
    await rig.compiler.compile(asked(2, quota, engine="wasmtime", accept_fast=True))
    await behind_ended(rig)
    assert rig.engines.compiles == 3, "nothing is left for the optimised one"
    assert site.used() == {"compiles_per_minute": 3}


async def behind_ended(rig: Rig) -> None:
    await settled()
    await rig.compiler.background.settle()


# Callers share a limit, and no caller takes it all


def fill(share: FairShare, caller: str) -> int:
    while share.room(caller) >= 1:
        share.add(caller, 1)
    return share.held.get(caller, 0)


def test_one_caller_gets_half_and_the_next_finds_room() -> None:
    share = FairShare(lambda: 1200)
    assert [fill(share, caller) for caller in "abcd"] == [600, 300, 150, 75]
    share.add("a", -600)
    assert fill(share, "b") > 300


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), max_size=50))
def test_it_counts_exactly_and_forgets_callers_that_hold_nothing(
    steps: list[tuple[str, int]],
) -> None:
    share = FairShare(lambda: 100)
    for caller, amount in steps:
        before = share.total, share.held.get(caller, 0)
        share.add(caller, amount)
        assert (share.total, share.held.get(caller, 0)) == (before[0] + amount, before[1] + amount)
    for caller in "abc":
        share.add(caller, -share.held.get(caller, 0))
    assert share.total == 0
    assert not share.held
