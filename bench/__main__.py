"""``python -m bench``: one table, each figure beside its yardstick of the same run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from bench.lab import BenchError
from bench.machine import describe
from bench.results import Row, as_json, from_json, markdown, print_table, wrapped
from bench.scale.rows import scale
from bench.setting import Setting, setting

MEASUREMENTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "cold": compiles.cold,
    "memory": hits.memory,
    "access": access.access,
    "host": host_hits.in_host_store,
    "redis": redis_hits.in_redis,
    "neighbours": neighbours.beside_large_values,
    "fast": fast.first_code,
    "warm": loads.warm,
    "fresh": fresh_loads.fresh,
    "callers": compiles.callers,
    "stalls": stalls.under_load,
    "busy": busy.on_a_busy_machine,
    "scale": scale,
}


def main() -> int:
    """Measure and print. Return the exit code: 0 measured, 1 goal missed with --strict, 2 not."""
    options = _parser().parse_args()
    progress = Console(stderr=True)
    failures: list[str] = []
    try:
        runs = [json.loads(file.read_text()) for file in options.runs or ()]
        rows = [from_json(row) for run in runs for row in run["rows"]]
        machines = [run["machine"] for run in runs]
        if not runs:
            started = time.monotonic()
            rows = _measured(options.only, options.quick, progress, failures)
            machines = [f"{describe()}; {time.monotonic() - started:.0f} s"]
    except BenchError as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        machine = " And: ".join(machines)
        print(json.dumps({"machine": machine, "rows": [as_json(row) for row in rows]}, indent=1))
    elif options.markdown:
        print(markdown(rows), *map(wrapped, machines), sep="\n\n")
    else:
        console = Console() if sys.stdout.isatty() else Console(width=160)
        print_table(rows, console)
        for machine in machines:
            console.print(f"{machine}; medians, measured in turns", style="dim")
    if options.plot:
        plot.write(rows)
        progress.print(f"wrote {plot.FILE}")
    if failures:
        return 2
    missed = [row for row in rows if row.met is False]
    return int(bool(missed) and options.strict)


def _measured(
    only: Sequence[str] | None, quick: bool, progress: Console, failures: list[str]
) -> list[Row]:
    """Return all rows that can be measured; what cannot is no reason to lose the others."""
    rows: list[Row] = []
    with (
        progress.status("starting a daemon") as status,
        setting(quick, thorough=only == ["scale"]) as given,
    ):
        for name, measure in MEASUREMENTS.items():
            if only and name not in only:
                continue
            status.update(f"measuring: {name}")
            try:
                rows.extend(measure(given))
            except BenchError as failure:
                failures.append(name)
                print(f"bench: {name}: {failure}", file=sys.stderr)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the daemon beside its yardsticks, everything on loopback.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about a minute")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--plot",
        action="store_true",
        help="draw ratios and goals into docs/reference/performance.svg",
    )
    parser.add_argument(
        "--from",
        action="append",
        type=Path,
        dest="runs",
        metavar="FILE",
        help="measure nothing: take what an earlier run printed with --json; repeatable",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument(
        "--only", action="append", choices=list(MEASUREMENTS), help="one measurement; repeatable"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
