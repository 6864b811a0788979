"""``python -m bench``: one table, each figure beside its yardstick of the same run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from bench import compiles, hits, loads, neighbours, redis_hits, stalls
from bench.lab import BenchError
from bench.machine import describe
from bench.results import Row, as_json, markdown, print_table
from bench.scale.rows import scale
from bench.setting import Setting, setting

MEASUREMENTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "cold": compiles.cold,
    "memory": hits.memory,
    "redis": redis_hits.in_redis,
    "neighbours": neighbours.beside_large_values,
    "warm": loads.warm,
    "callers": compiles.callers,
    "stalls": stalls.under_load,
    "scale": scale,
}


def main() -> int:
    """Measure and print. Answers the exit code: 0 measured, 1 goal missed with --strict, 2 not."""
    options = _parser().parse_args()
    progress = Console(stderr=True)
    started = time.monotonic()
    rows: list[Row] = []
    try:
        with (
            progress.status("starting a daemon") as status,
            setting(options.quick, thorough=options.only == ["scale"]) as given,
        ):
            for name, measure in MEASUREMENTS.items():
                if options.only and name not in options.only:
                    continue
                status.update(f"measuring: {name}")
                rows.extend(measure(given))
    except BenchError as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps({"machine": describe(), "rows": [as_json(row) for row in rows]}, indent=1))
    elif options.markdown:
        print(f"{markdown(rows)}\n\n{describe()}; {seconds:.0f} s.")
    else:
        console = Console() if sys.stdout.isatty() else Console(width=160)
        print_table(rows, console)
        console.print(f"{describe()}; {seconds:.0f} s; medians, measured in turns", style="dim")
    missed = [row for row in rows if row.met is False]
    return int(bool(missed) and options.strict)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the daemon beside its yardsticks, everything on loopback.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about a minute")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument(
        "--only", action="append", choices=list(MEASUREMENTS), help="one measurement; repeatable"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
