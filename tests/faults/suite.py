"""Runs the faults under load, and records what callers noticed."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.callers import REDIS, Call, with_shared_work
from tests.faults.kinds import KINDS, Kind
from tests.faults.load import Load
from tests.faults.material import Known, Material, make_material
from tests.faults.site import Site, running_site
from tests.faults.tampering import OF_ANY, OF_LARGE, TAMPERINGS, Target

_POLL_S = 0.02
_REJECTED = re.compile(r'^wasmkiln_values_rejected_total\{cause="(\w+)".*\} (\d+)', re.MULTILINE)
_RECOVERY_S = 30.0
_BETWEEN_S = 0.3
"""The pause between two faults, so that hardly any call meets two."""


@dataclass(frozen=True)
class Plan:
    """How many faults of each kind a run has."""

    rounds: int
    """How often each fault of the server or the line happens."""
    tamperings: int
    """How often each way of tampering is tried."""
    quiet_s: float
    """How long the load runs without faults, for comparison."""
    long: bool = False
    """Whether to include faults that take long, once each."""
    together: bool = False
    """Run both sites at once: that is faster, and the figures include waits for the CPU."""


@dataclass(frozen=True)
class Injection:
    """One fault: when it began, when the cause ended, and when the daemons had recovered."""

    fault: str
    began_s: float
    healed_s: float
    recovered_s: float
    sha256: str = ""
    """The module that it concerned, if there is one."""


@dataclass(frozen=True)
class Outcome:
    """All faults of a site, and all calls to it, with and without faults."""

    injections: list[Injection]
    quiet: list[Call]
    calls: list[Call]
    rejected: Counter[str]
    """Values that the daemons rejected, by cause."""
    errors: list[str]
    """The errors that the daemons logged; none is expected."""


async def run(
    folder: Path, plan: Plan, tell: Callable[[str], None] = lambda _: None
) -> list[Outcome]:
    """Run all faults; return an outcome for each site, with and without a bad line."""
    material = await asyncio.to_thread(make_material)
    sites = [
        _run_at(folder / ("line" if by_proxy else "server"), by_proxy, material, plan, tell)
        for by_proxy in (False, True)
    ]
    return await asyncio.gather(*sites) if plan.together else [await site for site in sites]


async def _run_at(
    folder: Path, by_proxy: bool, material: Material, plan: Plan, tell: Callable[[str], None]
) -> Outcome:
    befalls = [
        kind
        for number, kind in itertools.product(range(plan.rounds), KINDS)
        if kind.by_proxy == by_proxy and (not kind.takes_long or (plan.long and number == 0))
    ]
    injections: list[Injection] = []
    async with running_site(folder, by_proxy=by_proxy) as site:
        async with Load(site.callers, material) as load:
            await asyncio.sleep(plan.quiet_s / 3)  # Until all that is warm is stored.
            began = time.monotonic()
            await asyncio.sleep(plan.quiet_s)
            quiet = [call for call in load.calls if call.began_s >= began]
            for kind in befalls:
                tell(kind.name)
                injections.append(await _befall(site, kind))
            if not by_proxy:
                injections += await _tamper_with_all(site, material, plan.tamperings, tell)
        calls = [call for call in with_shared_work(load.calls) if call.began_s >= began]
        errors = [
            line
            for daemon in site.daemons
            for line in daemon.log_lines
            if '"level": "error"' in line
        ]
        return Outcome(injections, with_shared_work(quiet), calls, rejected_values(site), errors)


async def _befall(site: Site, kind: Kind) -> Injection:
    began = time.monotonic()
    async with kind.sick(site):
        await asyncio.sleep(kind.lasts_s)
        healed = time.monotonic()
    well = _takes_writes if kind.takes_reads else _answered_from_redis(healed)
    await _until(well, site, kind.name)
    recovered = time.monotonic()
    await asyncio.sleep(_BETWEEN_S)
    return Injection(kind.name, began, healed, recovered)


async def _takes_writes(site: Site) -> bool:
    stats = await asyncio.gather(*(caller.stats() for caller in site.callers))
    return all(each.redis_up and not each.redis_detail for each in stats)


def _answered_from_redis(since_s: float) -> Callable[[Site], Awaitable[bool]]:
    async def answered(site: Site) -> bool:
        return all(
            any(call.origin == REDIS and call.began_s > since_s for call in reversed(caller.calls))
            for caller in site.callers
        )

    return answered


async def _until(well: Callable[[Site], Awaitable[bool]], site: Site, what: str) -> None:
    deadline = time.monotonic() + _RECOVERY_S
    while not await well(site):
        if time.monotonic() > deadline:
            logs = "\n".join(daemon.log[-2000:] for daemon in site.daemons)
            raise AssertionError(f"no recovery from: {what}\n{logs}")
        await asyncio.sleep(_POLL_S)


async def _tamper_with_all(
    site: Site, material: Material, rounds: int, tell: Callable[[str], None]
) -> list[Injection]:
    """Tamper with each victim in a task of its own, in one way after the other."""
    injections: list[Injection] = []

    async def work(victim: Known, other: Known, left: list[str]) -> None:
        while left:
            how = left.pop(0)
            tell(f"tampering: {how} ({len(left)} left)")
            injections.append(await _tamper(site, how, victim, other))

    tasks = []
    for modules, ways in ((material.small, OF_ANY), (material.large, OF_LARGE)):
        left = [how for _ in range(rounds) for how in ways]
        *victims, other = modules
        tasks += [work(victim, other, left) for victim in victims]
    await asyncio.gather(*tasks)
    return injections


async def _tamper(site: Site, how: str, victim: Known, other: Known) -> Injection:
    one = site.callers[0]
    target = Target(site.admin, one.fingerprint, victim, other)
    await _until(_stored(target), site, f"before: {how}")
    await _until(_stored(replace(target, module=other)), site, f"before: {how}")
    began = time.monotonic()
    await asyncio.to_thread(TAMPERINGS[how], target)
    healed = time.monotonic()
    # Both meet it, at the same moment.
    await asyncio.gather(*(caller.forget(victim) for caller in site.callers))
    await asyncio.gather(*(caller.compile(victim) for caller in site.callers))

    async def mended(site: Site) -> bool:
        await one.forget(victim)
        return (await one.compile(victim)).origin == REDIS

    await _until(mended, site, how)
    # What waits for a forged lease belongs to this fault, not to the next.
    await asyncio.to_thread(site.admin.delete, target.lease)
    return Injection(how, began, healed, time.monotonic(), victim.sha256)


def _stored(target: Target) -> Callable[[Site], Awaitable[bool]]:
    """Return what has module and artifact stored, and tells whether they are complete."""

    async def stored(site: Site) -> bool:
        if await asyncio.to_thread(target.is_whole):
            return True
        await asyncio.to_thread(site.admin.delete, target.name)
        for caller in site.callers:
            await caller.forget(target.module)
        await site.callers[0].upload(target.module)
        return False

    return stored


def rejected_values(site: Site) -> Counter[str]:
    """Return how many stored values the daemons rejected, by cause."""
    counted: Counter[str] = Counter()
    for daemon in site.daemons:
        with urllib.request.urlopen(f"{daemon.admin_url}/metrics") as answer:
            page = answer.read().decode()
        for cause, count in _REJECTED.findall(page):
            counted[cause] += int(count)
    return counted


def during(calls: Iterable[Call], injection: Injection) -> list[Call]:
    """Return the calls that a fault may have touched: part of each falls within its time."""
    return [
        call
        for call in calls
        if injection.sha256 in ("", call.sha256)
        and call.began_s < injection.recovered_s
        and call.ended_s > injection.began_s
    ]
