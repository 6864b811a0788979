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
# The pause between two faults, so that hardly any call meets two.
_BETWEEN_S = 0.3
_MOST = 0.8


@dataclass(frozen=True)
class Injection:
    """One fault: when it began, when the cause ended, and when the daemons had recovered."""

    fault: str
    began_s: float
    healed_s: float
    recovered_s: float


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
    recovery_s: float
    """The median time from the end of the cause to recovery."""
    longest_recovery_s: float


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
    tell: Callable[[str], None] = lambda _: None,
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
            return Injection(kind.name, began_s, healed_s, recovered_s)

        load = await asyncio.to_thread(Load, clients)
        async with load.going_on():
            await asyncio.sleep(quiet_s / 3)  # Until all that is warm is stored.
            began_s = time.monotonic()
            await asyncio.sleep(quiet_s)
            quiet = load.since(began_s)
            injections = [
                await befall(kind)
                for number in range(rounds)
                for kind in tier.kinds
                if not kind.takes_long or (long and number == 0)
            ]
        calls = load.since(began_s)
        counts = [rejected(daemon) for daemon in daemons]
        return Report(
            [
                _row([each for each in injections if each.fault == fault], calls, quiet)
                for fault in dict.fromkeys(each.fault for each in injections)
            ],
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


def _row(injections: list[Injection], calls: list[Call], quiet: list[Call]) -> Row:
    met = [
        call
        for each in injections
        for call in calls
        if call.began_s < each.recovered_s and call.ended_s > each.began_s
    ]
    usual_s = statistics.median(call.waited_s for call in quiet)
    waited_out = [call.waited_s for call in met if call.waited_s > _MOST * TIMEOUT_S]
    recoveries = [each.recovered_s - each.healed_s for each in injections]
    return Row(
        injections[0].fault,
        len(injections),
        len(met),
        sum(bool(call.wrong) for call in met),
        sum(bool(call.failure) for call in met),
        max((call.waited_s for call in met), default=usual_s) - usual_s,
        statistics.median(waited_out) if waited_out else 0.0,
        statistics.median(recoveries),
        max(recoveries),
    )


def markdown(made: Report) -> str:
    """Return the table for docs/explanation."""
    lines = [
        "| fault | injected | calls meanwhile | wrong artifacts | failed calls"
        " | longest added wait, ms | recovered after, ms | at the latest, ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {row.fault} | {row.injected} | {row.calls:,} | {row.wrong} | {row.failed}"
            f" | {row.longest_added_s * 1e3:,.0f} | {row.recovery_s * 1e3:,.0f}"
            f" | {row.longest_recovery_s * 1e3:,.0f} |"
            for row in made.rows
        ),
        f"| **all** | **{sum(row.injected for row in made.rows)}** | **{len(made.calls):,}**"
        f" | **{len(made.wrong)}** | **{len(made.failed)}**"
        f" | **{max(row.longest_added_s for row in made.rows) * 1e3:,.0f}** |"
        f" | **{max(row.longest_recovery_s for row in made.rows) * 1e3:,.0f}** |",
    ]
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(made.rejected.items()))
    lines += [
        "",
        f"One configured time-out is {TIMEOUT_S * 1e3:.0f} ms. Without faults, the longest of"
        f" {len(made.quiet):,} calls took {made.quiet_longest_s * 1e3:,.0f} ms"
        f" apart from compiling. Rejected values, by cause: {causes or 'none'}.",
    ]
    return "\n".join(lines)
