"""Runs the faults under load, and counts what callers noticed."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wasmkiln import AsyncClient

from tests.e2e.daemon import Daemon, state_with
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import rejected
from tests.faults.load import ENGINE, Call, Load
from tests.faults.site import REDIS, TIMEOUT_S, Kind, Tier
from tests.promises import Tell, table

LEASE_S = 5.0
"""How long a daemon waits for another one that compiles, when Redis no longer tells."""
SETTINGS = {
    "WASMKILN_HOST_STORE_BYTES": "0",
    "WASMKILN_COMPILE_TIMEOUT_S": "8",
    "WASMKILN_MEMORY_BYTES": "1.5MiB",
    "WASMKILN_DEFAULT_ENGINE": ENGINE,
}
_CALL_S = 60.0
"""A call that takes longer hangs: nothing here is large."""
_RECOVERY_S = 30.0
Injection = tuple[float, float, float]
# The pause between two faults, so that hardly any call meets two.
_BETWEEN_S = 0.3
_MOST = 0.8


@dataclass(frozen=True)
class Row:
    """All injections of one kind, and the calls of which part falls within their time."""

    fault: str
    injected: int
    calls: int
    wrong: int
    failed: int
    longest_added_s: float
    waited_out_s: float
    """The median wait of the calls that waited for most of a time-out or longer; else 0."""
    recovery_s: tuple[float, float]
    """The median and the longest time from the end of the cause to recovery."""


@dataclass(frozen=True)
class Report:
    """What callers noticed in a run."""

    rows: list[Row]
    calls: list[Call]
    quiet: list[Call]
    """The calls without faults."""
    rejected: dict[str, int]
    """Values that the daemons rejected, by cause."""
    errors: list[str]
    """The errors that the daemons logged, which may be none."""

    @property
    def wrong(self) -> list[str]:
        """What was wrong with any answer."""
        return [call.wrong for call in self.calls if call.wrong]

    @property
    def failed(self) -> list[str]:
        """Why any call failed."""
        return [call.failure for call in self.calls if call.failure]

    @property
    def quiet_longest_s(self) -> float:
        """How long the longest call without faults took, apart from compiling."""
        return max(call.waited_s for call in self.quiet)


async def run(
    folder: Path,
    rounds: int,
    quiet_s: float,
    *,
    tier: Tier = REDIS,
    long: bool = False,
    tell: Tell = lambda _: None,
) -> Report:
    """Have each fault of a tier ``rounds`` times, under load; those that take ``long``, once."""
    async with AsyncExitStack() as stack:
        site = stack.enter_context(tier.running(folder / tier.name))
        keys = KeyDirectory.of(folder)
        assert keys.pair()
        environ = {**SETTINGS, **site.environment, "WASMKILN_KEYS_DIR": str(keys.folder)}
        daemons = [
            stack.enter_context(Daemon(state_with(folder / name, ENGINE), environ=environ))
            for name in ("one", "two")
        ]
        calling = partial(
            AsyncClient,
            timeout_s=_CALL_S,
            trusted_keys=keys.public.hex,
            max_attempts=1,
            host_store_dir="none",
        )
        clients = [await stack.enter_async_context(calling(each.address)) for each in daemons]

        async def recovered(kind: Kind, since_s: float) -> bool:
            if kind.takes_reads:
                stats = [await client.stats() for client in clients]
                return all(map(tier.is_well, stats))
            return all(
                any(
                    call.origin == tier.origin and call.began_s > since_s
                    for call in reversed(calls)
                )
                for calls in load.calls
            )

        async def befall(kind: Kind) -> Injection:
            """Have a fault; return when it began, when its cause ended and when all was well."""
            tell(kind.name)
            began_s = time.monotonic()
            sick = kind.sick(site)
            await asyncio.to_thread(sick.__enter__)
            await asyncio.sleep(kind.lasts_s)
            healed_s = time.monotonic()
            await asyncio.to_thread(sick.__exit__, None, None, None)
            await _until(lambda: recovered(kind, healed_s), kind.name)
            recovered_s = time.monotonic()
            await asyncio.sleep(_BETWEEN_S)
            return began_s, healed_s, recovered_s

        load = await asyncio.to_thread(Load, clients)
        async with load.going_on():
            await asyncio.sleep(quiet_s / 3)  # Until all that is warm is stored.
            began_s = time.monotonic()
            await asyncio.sleep(quiet_s)
            quiet = load.since(began_s)
            injections: dict[str, list[Injection]] = {}
            for number in range(rounds):
                for kind in tier.kinds:
                    if not kind.takes_long or (long and number == 0):
                        injections.setdefault(kind.name, []).append(await befall(kind))
        calls = load.since(began_s)
        counts = [rejected(daemon) for daemon in daemons]
        return Report(
            [_row(fault, each, calls, quiet) for fault, each in injections.items()],
            calls,
            quiet,
            {cause: sum(each.get(cause, 0) for each in counts) for cause in set().union(*counts)},
            [line for each in daemons for line in each.log_lines if '"level": "error"' in line],
        )


async def _until(well: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + _RECOVERY_S
    while not await well():
        assert time.monotonic() < deadline, f"no recovery from: {what}"
        await asyncio.sleep(0.02)


def _row(fault: str, injections: list[Injection], calls: list[Call], quiet: list[Call]) -> Row:
    met = [
        call
        for began_s, _, recovered_s in injections
        for call in calls
        if call.began_s < recovered_s and call.ended_s > began_s
    ]
    usual_s = statistics.median(call.waited_s for call in quiet)
    waited_out = [call.waited_s for call in met if call.waited_s > _MOST * TIMEOUT_S]
    recoveries = [recovered_s - healed_s for _, healed_s, recovered_s in injections]
    return Row(
        fault,
        len(injections),
        len(met),
        sum(bool(call.wrong) for call in met),
        sum(bool(call.failure) for call in met),
        max((call.waited_s for call in met), default=usual_s) - usual_s,
        statistics.median(waited_out) if waited_out else 0.0,
        (statistics.median(recoveries), max(recoveries)),
    )


def markdown(made: Report) -> str:
    """Return the table for docs/explanation."""
    head = ("fault", "injected", "calls meanwhile", "wrong artifacts", "failed calls")
    times = ("longest added wait, ms", "recovered after, ms", "at the latest, ms")
    rows = [
        [
            *(row.fault, *(f"{n:,}" for n in (row.injected, row.calls, row.wrong, row.failed))),
            *(f"{s * 1e3:,.0f}" for s in (row.longest_added_s, *row.recovery_s)),
        ]
        for row in made.rows
    ]
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(made.rejected.items()))
    return "\n".join(
        [
            *table((*head, *times), rows),
            "",
            f"{sum(row.injected for row in made.rows):,} faults, {len(made.calls):,} calls:"
            f" {len(made.wrong)} wrong, {len(made.failed)} failed. One configured time-out is"
            f" {TIMEOUT_S * 1e3:.0f} ms. Without faults, the longest of {len(made.quiet):,} calls"
            f" took {made.quiet_longest_s * 1e3:,.0f} ms apart from compiling. Rejected values, by"
            f" cause: {causes or 'none'}.",
        ]
    )
