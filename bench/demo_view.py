"""What the demo shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from wasmkiln import Artifact

from bench.results import milliseconds
from tests.corpus.modules import RealModule

_WORTH_SAYING = 2  # times faster


@dataclass
class Timings:
    """One engine's figures, in seconds."""

    cold_s: float = 0.0
    joined_s: float = 0.0
    joined: int = 0
    memory_s: float = 0.0
    redis_s: float = 0.0


def show_title(console: Console, module: RealModule) -> None:
    """Say what is going to be compiled."""
    text = Text.assemble(
        ("wasmkiln", "bold"),
        "  fire a module once, serve it everywhere\n",
        (f"{module.name}: {module.size_bytes / 1e6:.1f} MB of C, ", "dim"),
        (f"a JavaScript engine, from PyPI ({module.requirement})", "dim"),
    )
    console.print(Panel(text, box=box.ROUNDED, expand=False))


def show_engine(console: Console, engine_id: str, seconds: float, artifact: Artifact) -> None:
    """Say what an engine made."""
    header = artifact.header
    console.print(
        f"\n[bold]{engine_id}[/bold] compiled it in {milliseconds(seconds)} ms:"
        f" {len(artifact.bytes) / 1e6:.1f} MB of native code for {header.cpu}"
    )


def show_result(console: Console, seconds: float, result: Mapping[str, Any]) -> None:
    """Say what another process got out of the artifact."""
    console.print(
        f"  a process with only that engine loads it and runs JavaScript, in"
        f" {milliseconds(seconds)} ms:"
    )
    for name, value in result.items():
        console.print(Text(f"    {name:<8} {json.dumps(value)}", style="cyan"))


def show_table(console: Console, timings: Mapping[str, Timings], callers: int) -> None:
    """Show what each tier saves."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("where the artifact came from")
    table.add_column("ms", justify="right")
    table.add_column("", style="green")
    for engine_id, each in timings.items():
        table.add_row(f"[bold]{engine_id}[/bold]", "compiled for this call", *_cells(each, "cold"))
        shared = f"{callers} callers, one compile"
        table.add_row("", shared, *_cells(each, "joined"))
        table.add_row("", "memory", *_cells(each, "memory"))
        table.add_row("", "Redis, after a restart", *_cells(each, "redis"))
        table.add_section()
    console.print()
    console.print(table)
    joined = " and ".join(f"{each.joined} of {callers}" for each in timings.values())
    console.print(
        f"{joined} callers joined the compile of another.\n"
        "Next: [bold]make run[/bold] to serve, [bold]make bench[/bold] to measure."
    )


def _cells(timings: Timings, place: str) -> tuple[str, str]:
    seconds = getattr(timings, f"{place}_s")
    times = timings.cold_s / seconds
    saved = f"{times:,.0f} times faster" if times >= _WORTH_SAYING else ""
    return milliseconds(seconds), saved
