"""``wasmkilnd cache scrub``: verify every value, and delete the bad ones."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import click
from wasmkiln.cli.text import size

from wasmkilnd.cache.redis.value_reader import RateLimiter, ValueReader
from wasmkilnd.commands.cache.recompile import Recompiled, recompiler
from wasmkilnd.commands.cache.session import (
    HELP,
    BadValuesFound,
    HostSession,
    Place,
    Session,
    duration_option,
    rate_option,
    run,
    run_on_host,
    tier_option,
    where_options,
)
from wasmkilnd.commands.cache.text import bar, document, duration, say, say_json
from wasmkilnd.maintenance.host_store import HostScrub
from wasmkilnd.maintenance.inventory import Inventory
from wasmkilnd.maintenance.orphans import Mentions, OrphanFinder
from wasmkilnd.maintenance.scrub import Finding, Scrub, Scrubbed

_COMPILING = (
    *("workers", "compile_timeout_s", "compile_cpu_s", "compile_memory_bytes", "isolation"),
)


@click.command(context_settings=HELP)
@click.option("--dry-run", is_flag=True, help="Report only; delete nothing.")
@click.option(
    "--recompile",
    is_flag=True,
    help="Compile the artifacts again with the engines installed here, and compare.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Compile only N artifacts, chosen at random.",
)
@duration_option(
    "--orphans-older-than",
    "orphan_age_s",
    "2m",
    "Look twice for pieces that no value mentions, this long apart, and delete those found both"
    " times: a daemon writes a value after its pieces.",
)
@rate_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line; the last is a summary."
)
@tier_option
@where_options("max_artifact_bytes", *_COMPILING)
def scrub(
    dry_run: bool,
    recompile: bool,
    sample: int | None,
    orphan_age_s: float,
    bytes_per_s: int,
    as_json: bool,
    on_host: bool,
    place: Place,
) -> None:
    """Verify every value completely, and delete the bad ones.

    Daemons may run meanwhile. Exits with 0 if all values are good, and with 3 if some are bad.
    """
    if sample and not recompile:
        raise click.UsageError("--sample limits what is compiled again: it needs --recompile")

    def report(finding: Finding) -> None:
        if as_json:
            say_json({**document(finding), "name": finding.name.decode()})
        else:
            done = "deleted" if finding.deleted else "kept"
            say(f"BAD ({done}) {finding.name.decode()}: {finding.cause}: {finding.why}")

    async def work(session: Session) -> tuple[Scrub, Recompiled | None, int]:
        session.require_trust()
        reader = ValueReader(
            session.link, session.names, session.verifier, RateLimiter(bytes_per_s)
        )
        scrubber = Scrub(
            session.link,
            session.names,
            reader,
            Inventory(session.link, session.names, session.verifier),
            OrphanFinder(session.link, session.names, Mentions(session.names)),
            dry_run=dry_run,
            report_finding=report,
        )
        with bar("finding orphans", None):
            await scrubber.find_orphans()
        with bar("listing", None):
            keys = await scrubber.keys()
        with bar("verifying", len(keys)) as advance:
            await scrubber.verify(keys, lambda: advance(1))
        with bar("checking orphans again", None):
            await scrubber.sweep_orphans(orphan_age_s)
        recompiled = None
        if recompile:
            chosen = list(scrubber.good)
            if sample is not None:
                chosen = random.sample(chosen, min(sample, len(chosen)))
            engines = {scrubber.good[key] for key in chosen}
            async with recompiler(engines, reader, scrubber, session.settings) as again:
                with bar("compiling", len(chosen)) as advance:
                    await again.check(chosen, advance)
            recompiled = again.report
        return scrubber, recompiled, reader.bytes_read

    def work_on_host(session: HostSession) -> tuple[HostScrub, None, int]:
        session.require_trust()
        scrubber = HostScrub(
            session.options,
            session.verifier,
            dry_run=dry_run,
            report_finding=report,
        )
        with bar("verifying", None) as advance:
            scrubber.run(lambda: advance(1))
        return scrubber, None, scrubber.bytes_read

    if on_host and (recompile or bytes_per_s):
        raise click.UsageError("--recompile and --rate are for the tier redis")
    done: Scrub | HostScrub
    recompiled: Recompiled | None
    if on_host:
        done, recompiled, bytes_read = run_on_host(place, work_on_host)
    else:
        done, recompiled, bytes_read = run(place, work)
    if as_json:
        say_json(_document(done.report, recompiled, bytes_read, dry_run))
    else:
        for line in _summary(done.report, recompiled, bytes_read, dry_run, orphan_age_s):
            say(line)
    if done.trusts_no_value:
        raise BadValuesFound(
            "no value is signed by a key that is trusted here, so none was deleted for that: check"
            " that these are the right keys (--keys-dir, WASMKILN_TRUSTED_KEYS)"
        )
    if done.report.bad:
        raise BadValuesFound(f"bad values: {_counts(done.report.bad)}")


def _document(
    report: Scrubbed, recompiled: Recompiled | None, bytes_read: int, dry_run: bool
) -> dict[str, Any]:
    return {
        "summary": {
            **document(report),
            "recompiled": document(recompiled) if recompiled else None,
            "bytes_read": bytes_read,
            "dry_run": dry_run,
        }
    }


def _summary(
    report: Scrubbed,
    recompiled: Recompiled | None,
    bytes_read: int,
    dry_run: bool,
    orphan_age_s: float,
) -> list[str]:
    gone = "to delete" if dry_run else "deleted"
    lines = [
        f"{report.artifacts} artifacts and {report.modules} modules are good"
        f" ({size(bytes_read)} read)"
    ]
    if report.bad:
        lines.append(f"{report.bad.total()} bad, {report.deleted} deleted: {_counts(report.bad)}")
    if report.other_format:
        lines.append(f"{report.other_format} in another version's format: left alone")
    if report.gone:
        lines.append(f"{report.gone} were deleted or expired meanwhile")
    if report.orphans or report.young_orphans:
        lines.append(
            f"{report.orphans} orphaned pieces {gone} ({size(report.orphan_bytes)}),"
            f" {report.young_orphans} younger than {duration(orphan_age_s)} left alone"
        )
    if recompiled:
        lines.append(f"compiled again: {recompiled.same} the same, {recompiled.other} other code")
        for reason, count in recompiled.unchecked.most_common():
            lines.append(f"cannot check here: {count}: {reason}")
    return lines


def _counts(bad: Counter[str]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in bad.most_common())
