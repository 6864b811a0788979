"""``python -m bench``: one table, each figure beside its yardstick of the same run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench import compiles, hits, loads, plot, scale
from bench.lab import ROOT, BenchError, Setting, setting
from bench.rows import PAGE, Row, Run

Measurements = Mapping[str, Callable[[Setting], Iterator[Row]]]

MEASUREMENTS: Measurements = {
    "cold": compiles.cold,
    "memory": hits.memory,
    "engine": hits.by_engine,
    "access": hits.access,
    "host": hits.host_store,
    "http": hits.over_http,
    "redis": hits.in_redis,
    "objects": hits.in_object_store,
    "fast": compiles.fast,
    "fresh": loads.fresh,
    "first": loads.first,
    "portable": loads.portable,
    "callers": compiles.callers,
    "stalls": compiles.stalls,
    "rates": hits.rates,
    "daemons": scale.daemons,
    "starts": scale.starts,
    "evict": scale.evict,
}
FILE = ROOT / ".work" / "bench" / "run.json"


def main(arguments: Sequence[str] | None = None, measurements: Measurements = MEASUREMENTS) -> int:
    """Measure and print. Return the exit code: 0 measured, 2 not all."""
    options = _parser(measurements).parse_args(arguments)
    run = Run()
    options.file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with setting(options.quick) as given:
            try:
                for name in options.only or measurements:
                    run.measure(name, measurements[name](given), options.file)
            finally:
                print(run.page())  # Now: to remove what was made takes a minute.
    except BenchError as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.page:
        PAGE.write_text(run.page())
        plot.FILE.write_bytes(plot.svg([row for row in run.rows if row.goal is not None]))
        print(f"wrote {PAGE} and {plot.FILE}")
    return 2 if run.failed else 0


def _parser(measurements: Measurements) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the daemon beside its yardsticks, everything on loopback.",
    )
    add = parser.add_argument
    quick = "one round of each, of tiny modules: shows only that all can be measured"
    add("--quick", action="store_true", help=quick)
    only = f"one measurement; repeatable: {', '.join(measurements)}"
    add("--only", action="append", choices=list(measurements), metavar="NAME", help=only)
    file = "where to write the run, row by row (%(default)s)"
    add("--file", type=Path, default=FILE, help=file)
    page = "write docs/reference/performance.md and its picture"
    add("--page", action="store_true", help=page)
    return parser


if __name__ == "__main__":
    sys.exit(main())
