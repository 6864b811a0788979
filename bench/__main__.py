"""``python -m bench``: one table, each figure beside its yardstick of the same run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from bench import (
    access,
    busy,
    compiles,
    fast,
    fresh_loads,
    hits,
    host_hits,
    loads,
    neighbours,
    plot,
    redis_hits,
    stalls,
)
from bench.lab import ROOT, BenchError
from bench.results import print_table
from bench.run import PAGE, Measurements, Run
from bench.scale.callers import callers
from bench.scale.evict import evictions
from bench.scale.operations import operations
from bench.scale.start import starts
from bench.scale.whole import whole_daemons
from bench.setting import setting

MEASUREMENTS: Measurements = {
    "cold": compiles.cold,
    "memory": hits.memory,
    "access": access.access,
    "host": host_hits.in_host_store,
    "redis": redis_hits.in_redis,
    "neighbours": neighbours.beside_large_values,
    "fast": fast.first_code,
    "warm": loads.warm,
    "fresh": fresh_loads.fresh,
    "first": fresh_loads.first,
    "callers": compiles.callers,
    "stalls": stalls.under_load,
    "busy": busy.on_a_busy_machine,
    "rates": callers,
    "daemons": whole_daemons,
    "starts": starts,
    "entries-memory": partial(operations, "memory"),
    "entries-host": partial(operations, "host_store"),
    "entries-redis": partial(operations, "redis"),
    "evict": evictions,
}
FILE = ROOT / ".work" / "bench" / "run.json"


def main(arguments: Sequence[str] | None = None, measurements: Measurements = MEASUREMENTS) -> int:
    """Measure and print. Return the exit code: 0 measured, 1 goal missed with --strict, 2 not."""
    options = _parser(measurements).parse_args(arguments)
    interrupted = False
    if options.read:
        run = Run.read(options.read)
        _show(run)
    else:
        run = Run()
        options.file.parent.mkdir(parents=True, exist_ok=True)
        chosen = {name: measurements[name] for name in options.only or measurements}
        try:
            with setting(options.quick) as given:
                try:
                    run.measure(chosen, given, options.file)
                finally:
                    _show(run)  # Now: to remove what was made takes a minute.
        except BenchError as failure:
            print(f"bench: {failure}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        return 130
    if options.page:
        PAGE.write_text(run.page())
        plot.write(run.rows, plot.FILE)
        print(f"wrote {PAGE} and {plot.FILE}")
    if run.failed:
        return 2
    return int(options.strict and any(row.met is False for row in run.rows))


def _show(run: Run) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=160)
    print_table(run.rows, run.failed, console)
    console.print(f"{run} Medians, measured in turns.", style="dim")


def _parser(measurements: Measurements) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the daemon beside its yardsticks, everything on loopback.",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of each, of tiny modules: shows only that all can be measured",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(measurements),
        metavar="NAME",
        help=f"one measurement; repeatable: {', '.join(measurements)}",
    )
    parser.add_argument(
        "--file",
        type=Path,
        default=FILE,
        help="where to write the run, row by row (%(default)s)",
    )
    parser.add_argument(
        "--from",
        type=Path,
        dest="read",
        metavar="FILE",
        help="measure nothing: take a run that was written before",
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="write docs/reference/performance.md and its picture",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a goal is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
