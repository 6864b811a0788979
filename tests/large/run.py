"""One daemon compiles large modules; two others have to get them from Redis and an object store.

The settings are defaults but for the size of a module and the time of a compile. A module that the
engine compiles has to reach both other daemons, with equal bytes and without a compile there; any
other has to get a clear answer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from wasmkiln import Artifact, Client, WasmkilnError
from wasmkiln.v1 import types_pb2

from tests.corpus.fetch import fetch
from tests.corpus.modules import RealModule
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually, jobs_of
from tests.hostile.answers import highest_memory_bytes
from tests.promises import Check, Tell, promises, table
from tests.servers.redis_server import binary_of, redis_server

ENGINE = "wasmtime-50.0.1"
CLEAR = {"ENGINE_LACKS_FEATURE", "COMPILE_TIMEOUT", "COMPILE_MEMORY_LIMIT", "ARTIFACT_TOO_LARGE"}
"""What a module may get instead of an artifact."""
TIERS = {"REDIS": "Redis", "OBJECT_STORE": "the object store"}
_ENDS = ("ok", "failed")
_COMPILE_S, _CALL_S = 600, 1200
_SETTINGS = {
    "WASMKILN_MAX_MODULE_BYTES": "128MiB",
    "WASMKILN_COMPILE_TIMEOUT_S": str(_COMPILE_S),
    "WASMKILN_REDIS_URL": "none",
    "WASMKILN_WORKERS": "0",  # The default of daemons, if not of those in tests.
}
_HEAD = (
    *("module", "MiB", "answer", "call, s", "compile, s", "memory of the job, MiB"),
    *("artifact, MiB", *(f"from {tier}, s" for tier in TIERS.values())),
)


@dataclass
class Outcome:
    """What became of one module."""

    module: RealModule
    said: str = "OK"
    """Or the reason of the error, and its message below."""
    message: str = ""
    call_s: float = 0
    job_bytes: int = 0
    """The most memory that its job has had."""
    made: Artifact | None = None
    elsewhere: dict[str, tuple[float, str]] = field(default_factory=dict)
    """By tier, how long another daemon took, and what is wrong with its answer."""

    @property
    def cells(self) -> Sequence[str]:
        """The row of the table."""
        mib, told = 2.0**20, f"`{self.said}` {self.message}".strip()
        cells = [self.module.name, f"{self.module.size_bytes / mib:.1f}", told]
        cells += [f"{self.call_s:.1f}", "", f"{self.job_bytes / mib:,.0f}", "", "", ""]
        if self.made:
            compile_s = self.made.header.compile_time.ToTimedelta().total_seconds()
            cells[4], cells[6] = f"{compile_s:.1f}", f"{self.made.header.size_bytes / mib:.1f}"
            cells[7:] = [f"{seconds:.2f}" for seconds, _ in self.elsewhere.values()]
        return cells


@dataclass(frozen=True)
class Result:
    """What a run saw."""

    outcomes: Sequence[Outcome]
    compiles: Mapping[str, int]
    """By tier, those of the daemon that shares it."""
    highest_bytes: Sequence[int]
    """The most memory that each daemon has had."""
    errors: Sequence[str]
    """Lines of their logs."""
    again: float
    """Jobs that had reserved too little memory, and ran once more."""

    def checks(self) -> list[Check]:
        """Return what was promised, and whether it was kept."""
        ends = [(one.module.name, one.said) for one in self.outcomes]
        made = [one for one in self.outcomes if one.made]
        unclear = [f"{name}: {said}" for name, said in ends if said not in {"OK", *CLEAR}]
        seen = [f"{len(made)} of {len(ends)} compiled", *unclear]
        checks = [
            Check("each is compiled, or refused with a clear reason", ", ".join(seen), not unclear),
            Check("errors in the daemons' logs: 0", f"{len(self.errors)}", not self.errors),
        ]
        for tier, count in self.compiles.items():
            wrong = [f"{one.module}: {one.elsewhere[tier][1]}" for one in made]
            wrong = [each for each in wrong if not each.endswith(": ")]
            seen = [f"{len(made) - len(wrong)}, {count} compiles", *wrong]
            promise = f"{TIERS[tier]} serves each of them to another daemon, with equal bytes"
            checks.append(Check(promise, ", ".join(seen), not wrong and not count))
        return checks

    def markdown(self) -> str:
        """Return the figures as tables."""
        lines = [*table(_HEAD, [one.cells for one in self.outcomes]), "", *promises(self.checks())]
        first, *others = (f"{count / 2**20:,.0f}" for count in self.highest_bytes)
        told = f"Memory of the daemon that compiles, at its highest: {first} MiB; of the others: "
        again = f"Jobs that had reserved too little memory, and ran once more: {self.again:.0f}."
        return "\n".join([*lines, "", f"{told}{', '.join(others)} MiB.", again])


def run(folder: Path, modules: Sequence[RealModule], tell: Tell) -> Result:
    """Have one daemon compile them, one after the other, and ask two others for each."""
    outcomes, objects = [], folder / "objects"
    objects.mkdir()
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(binary_of("valkey"), folder / "redis"))
        reach = {
            "REDIS": {"WASMKILN_REDIS_URL": redis.url},
            "OBJECT_STORE": {"WASMKILN_OBJECT_STORE_URL": f"file://{objects}"},
        }

        def started(name: str, **environ: str) -> tuple[Daemon, Client]:
            state = fresh_state(folder / name, engines=[ENGINE])
            daemon = stack.enter_context(Daemon(state, environ={**_SETTINGS, **environ}))
            client = daemon.client(trusted_keys=folder / "keys" / "trusted", timeout_s=_CALL_S)
            return daemon, stack.enter_context(client)

        daemon, client = started("first", **reach["REDIS"], **reach["OBJECT_STORE"])
        others = {tier: started(f"with-{tier}", **reach[tier]) for tier in TIERS}
        for module in modules:
            outcome = _compile(daemon, client, module)
            if made := outcome.made:
                asked = {tier: _ask(other, made, tier) for tier, (_, other) in others.items()}
                outcome.elsewhere.update(asked)
                outcome.made = replace(made, bytes=b"")  # All of them are a gigabyte.
            outcomes.append(outcome)
            tell(" ".join(outcome.cells))
        daemons = [daemon, *(other for other, _ in others.values())]
        stats = {tier: other.stats() for tier, (_, other) in others.items()}
        return Result(
            outcomes,
            {tier: sum(each.count for each in told.compiles) for tier, told in stats.items()},
            [highest_memory_bytes(each.pid) for each in daemons],
            [line for each in daemons for line in each.log_lines if '"level": "error"' in line],
            sum(daemon.metric("jobs_run_again_total", memory="limit", outcome=o) for o in _ENDS),
        )


def _compile(daemon: Daemon, client: Client, module: RealModule) -> Outcome:
    """Send a module from its file; return what came of it, once that is written to every tier."""
    path, outcome, began_s = fetch(module), Outcome(module), time.monotonic()
    with _memory_of_jobs(daemon) as seen:
        try:
            outcome.made = client.compile(path)
        except WasmkilnError as refusal:
            outcome.said, outcome.message = refusal.reason or refusal.code.name, refusal.message
        outcome.call_s = time.monotonic() - began_s
    outcome.job_bytes = max(seen, default=0)

    def is_written() -> bool:
        stats = client.stats()
        return not stats.pending_writes and not stats.pending_object_writes

    eventually(is_written, "writes wait", _COMPILE_S)
    return outcome


def _ask(client: Client, made: Artifact, tier: str) -> tuple[float, str]:
    """Ask another daemon for what was made; return how long that took, and what is wrong."""
    began_s = time.monotonic()
    try:
        found = client.compile(made.header.module_sha256)
    except WasmkilnError as refusal:
        return time.monotonic() - began_s, refusal.message
    taken_s, origin = time.monotonic() - began_s, types_pb2.Origin.Name(found.header.origin)
    wrong = "" if found.bytes == made.bytes else "other bytes"
    return taken_s, wrong if origin == f"ORIGIN_{tier}" else origin


@contextmanager
def _memory_of_jobs(daemon: Daemon) -> Iterator[list[int]]:
    """Note the most memory that each job of a daemon has had so far, again and again."""
    seen: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for job in jobs_of(daemon.pid):
                # One that has just ended has none.
                with contextlib.suppress(OSError, ValueError):
                    seen.append(highest_memory_bytes(job))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield seen
    finally:
        ended.set()
        looker.join()
