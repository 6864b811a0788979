"""Which modules are refused, for how long, and what other daemons learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from wasmkilnd import errors
from wasmkilnd.errors import Fault, Reason, TierUnavailable, WasmkilnError
from wasmkilnd.model import CacheKey, Limits, Strike
from wasmkilnd.quarantine import MEMORY_S, Quarantine
from wasmkilnd.waits.budgets import WaitBudget

from tests.contract.values import artifact
from tests.doubles.clock import Clock
from tests.doubles.notes import Notes
from tests.unit.engines.limits import LIMITS

SPEC = artifact(1).spec
KEY = CacheKey("a" * 64, SPEC.fingerprint)
OTHER = CacheKey("a" * 64, "other")

TIMEOUT = errors.compile_timeout("e-1", "compiling", 30)
MEMORY = errors.compile_memory_limit("e-1", 1000)
CRASH = errors.compiler_crashed("e-1", "was ended by SIGSEGV", "", "SIGSEGV")
KILLED = errors.compiler_crashed("e-1", "was ended by SIGKILL", "", "SIGKILL")
STARVED = errors.compile_timeout("e-1", "compiling", 30, Fault.NONE)
REFUSED = errors.compile_memory_limit("e-1", 1000, Fault.NONE)
LOST = errors.compiler_crashed("e-1", "lost its worker process twice", "", fault=Fault.NONE)


class Store:
    """Strikes shared by all that are given it; ages by ``clock``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._strikes: dict[CacheKey, tuple[Strike, float, float]] = {}
        self.down = False

    def _check(self) -> None:
        if self.down:
            raise TierUnavailable("down")

    async def get(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        self._check()
        if key not in self._strikes:
            return None
        strike, since, ttl_s = self._strikes[key]
        age_s = self._clock() - since
        if age_s > ttl_s:
            return None
        return replace(strike, left_s=max(0.0, strike.left_s - age_s))

    async def put(self, strike: Strike, ttl_s: float, budget: WaitBudget) -> None:
        self._check()
        self._strikes[strike.key] = strike, self._clock(), ttl_s

    async def all(self) -> Sequence[Strike]:
        self._check()
        return [one for key in self._strikes if (one := await self.get(key, WaitBudget()))]

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        self._check()
        gone = [key for key in self._strikes if module_sha256 in ("", key.module_sha256)]
        for key in gone:
            del self._strikes[key]
        return gone


class Fleet:
    """Two daemons on one store; the second may have limits of its own."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.clock = Clock()
        self.store = Store(self.clock)
        self.first_s = 600.0
        self.one, self.two = (
            Quarantine(
                *(cast(Any, self.store), Notes(), lambda: self.first_s),
                *(lambda limits=limits: limits, self.clock),
            )
            for limits in (LIMITS, limits or LIMITS)
        )


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


async def refusal(quarantine: Quarantine, key: CacheKey = KEY) -> WasmkilnError | None:
    try:
        await quarantine.check(key, WaitBudget())
    except WasmkilnError as error:
        return error if error.reason is Reason.MODULE_QUARANTINED else None
    return None


@pytest.mark.parametrize("failure", [TIMEOUT, MEMORY, CRASH])
async def test_a_module_that_broke_a_compiler_is_refused_by_every_daemon_for_a_while(
    fleet: Fleet, failure: WasmkilnError
) -> None:
    assert await refusal(fleet.one) is None
    await fleet.one.report(KEY, SPEC, failure, WaitBudget())
    for quarantine in (fleet.one, fleet.two):
        refused = await refusal(quarantine)
        assert refused
        assert refused.metadata["first_reason"] == failure.reason.value
        assert failure.message in refused.message
        assert float(refused.metadata["seconds_left"]) == 600
        assert await refusal(quarantine, OTHER) is None
        assert len(quarantine.known()) == 1
    fleet.clock.now_s += 599
    assert await refusal(fleet.two)
    fleet.clock.now_s += 2
    assert await refusal(fleet.one) is await refusal(fleet.two) is None
    assert fleet.one.known() == fleet.two.known() == []


@pytest.mark.parametrize(
    "failure",
    [
        errors.module_invalid("e-1", "bad", None),
        errors.artifact_too_large("e-1", 2, 1),
        errors.compile_queue_full("e-1", 1, 1),
        errors.server_draining(),
        errors.engine_lacks_feature("e-1", "simd", []),
        errors.worker_unavailable("e-1", "its interpreter is gone"),
        LOST,
        KILLED,
        STARVED,
        REFUSED,
    ],
)
async def test_other_failures_are_no_strikes(fleet: Fleet, failure: WasmkilnError) -> None:
    for _ in range(2):
        await fleet.one.report(KEY, SPEC, failure, WaitBudget())
    assert await refusal(fleet.one) is None
    assert await fleet.store.all() == []


async def test_each_repeat_doubles_the_time_up_to_a_day_until_it_is_forgotten(
    fleet: Fleet,
) -> None:
    for number, expected in enumerate((600, 1200, 2400, 4800)):
        await fleet.two.report(KEY, SPEC, CRASH if number else MEMORY, WaitBudget())
        [strike] = await fleet.one.listed()
        assert strike.left_s == expected
        refused = await refusal(fleet.one)
        assert refused
        assert refused.metadata["first_reason"] == "COMPILE_MEMORY_LIMIT"
        fleet.clock.now_s += expected + 1
        assert await refusal(fleet.one) is None
    for _ in range(40):
        await fleet.one.report(KEY, SPEC, CRASH, WaitBudget())
    [strike] = await fleet.one.listed()
    assert (strike.count, strike.left_s) == (44, 24 * 3600)
    fleet.clock.now_s += 24 * 3600 + 1 + MEMORY_S
    await fleet.one.report(KEY, SPEC, CRASH, WaitBudget())
    [strike] = await fleet.one.listed()
    assert (strike.count, strike.left_s) == (1, 600)


async def test_during_an_outage_each_keeps_its_own_strikes_and_after_it_the_store_counts(
    fleet: Fleet,
) -> None:
    await fleet.two.report(OTHER, SPEC, CRASH, WaitBudget())
    fleet.store.down = True
    await fleet.one.report(KEY, SPEC, CRASH, WaitBudget())
    assert await refusal(fleet.one)
    assert await refusal(fleet.two) is None
    assert await refusal(fleet.one, OTHER) is None
    assert len(await fleet.one.listed()) == 1
    assert await fleet.one.release("") == (1, False)
    assert await refusal(fleet.one) is None
    for _ in range(2):  # The second time it was forgotten.
        await fleet.one.report(KEY, SPEC, CRASH, WaitBudget())
        [strike] = await fleet.one.listed()
        assert (strike.count, strike.left_s) == (1, fleet.first_s)
        fleet.clock.now_s += MEMORY_S + fleet.first_s + 1
    await fleet.one.report(KEY, SPEC, CRASH, WaitBudget())
    assert await refusal(fleet.one)
    fleet.store.down = False
    await fleet.two.report(OTHER, SPEC, CRASH, WaitBudget())
    assert await refusal(fleet.one) is None
    assert await refusal(fleet.one, OTHER)
    assert fleet.one.known() == await fleet.one.listed() == await fleet.two.listed()


async def test_memory_is_bounded(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmkilnd.quarantine._MAX_KNOWN", 100)
    fleet.store.down = True
    for number in range(110):
        await fleet.one.report(CacheKey(str(number), "f"), SPEC, CRASH, WaitBudget())
    assert len(fleet.one.known()) == 100


@pytest.mark.parametrize(
    ("failure", "limit", "counts"),
    [
        (MEMORY, {"compile_memory_bytes": 1_000_001}, False),
        (MEMORY, {"compile_memory_retry_bytes": 1_000_001}, False),
        (MEMORY, {"compile_memory_bytes": 999_999}, True),
        (MEMORY, {"compile_timeout_s": 31, "compile_cpu_s": 61}, True),
        (TIMEOUT, {"compile_timeout_s": 31}, False),
        (TIMEOUT, {"compile_cpu_s": 61}, False),
        (TIMEOUT, {"compile_memory_bytes": 1_000_001}, True),
        (CRASH, {"compile_memory_bytes": 1_000_001, "compile_timeout_s": 31}, True),
    ],
)
async def test_a_strike_for_a_limit_counts_where_the_limit_is_no_higher(
    failure: WasmkilnError, limit: dict[str, int], counts: bool
) -> None:
    fleet = Fleet(replace(LIMITS, **limit))
    await fleet.one.report(KEY, SPEC, failure, WaitBudget())
    assert await refusal(fleet.one)
    assert bool(await refusal(fleet.two)) == bool(fleet.two.known()) == counts
    assert len(await fleet.two.listed()) == 1


async def test_daemons_that_each_have_more_of_something_do_not_undo_each_other_s_strikes() -> None:
    """One has less memory, the other less time. Each tries once more at most."""
    fleet = Fleet(replace(LIMITS, compile_memory_bytes=2_000_000, compile_timeout_s=10))
    tries = 0
    for quarantine, failure in [(fleet.one, MEMORY), (fleet.two, TIMEOUT)] * 5:
        if not await refusal(quarantine):
            tries += 1
            await quarantine.report(KEY, SPEC, failure, WaitBudget())
    assert tries == 3
    # What each of them says of the module is what it met itself.
    refused = await refusal(fleet.two)
    assert refused
    assert refused.metadata["first_reason"] == "COMPILE_MEMORY_LIMIT"
    await fleet.two.report(KEY, SPEC, CRASH, WaitBudget())
    await fleet.two.report(KEY, SPEC, TIMEOUT, WaitBudget())
    [strike] = await fleet.one.listed()
    assert strike.limits == {}
