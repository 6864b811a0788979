"""`wasmkiln warm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wasmkiln.cli import batch, warm_table
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.exits import Exit
from wasmkiln.cli.parallel import in_parallel
from wasmkiln.cli.progress import counter
from wasmkiln.cli.seconds import Seconds
from wasmkiln.cli.text import size, time
from wasmkiln.cli.warming.outcome import Outcome
from wasmkiln.cli.warming.sources import Sources
from wasmkiln.cli.warming.variants import every_variant, variant_options
from wasmkiln.cli.warming.work import Wanted, Warmer, each_once, missing

if TYPE_CHECKING:
    from wasmkiln.cli.batch import Done
    from wasmkiln.cli.session import Session
    from wasmkiln.cli.warming.module import Module
    from wasmkiln.v1.types_pb2 import ArtifactHeader

# Warming many modules fills the queue, and the daemon says when to try again.
_MAX_ATTEMPTS = 10


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@variant_options
@click.option(
    "--jobs",
    type=click.IntRange(min=1, max=1_000),
    default=4,
    show_default=True,
    help="Calls at the same time.",
)
@click.option(
    "--pin",
    "pins",
    is_flag=True,
    help="Pin the modules that are warm then; needs the role admin.",
)
@click.option(
    "--recursive/--no-recursive", default=True, help="Go into the folders of a folder, or not."
)
@click.option(
    "--plain-http/--no-plain-http",
    default=None,
    help="Ask registries over http, or never.  [default: those of this machine only]",
)
@click.option(
    "--fetch-timeout",
    type=Seconds(min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit of each download from a registry.",
)
@connection_options
@click.pass_context
def warm(
    context: click.Context,
    sources: tuple[str, ...],
    engines: tuple[str, ...],
    targets: tuple[str, ...],
    cpus: tuple[str, ...],
    settings: dict[str, list[str]],
    jobs: int,
    pins: bool,
    recursive: bool,
    plain_http: bool | None,
    fetch_timeout: float,
) -> None:
    """Compile what is missing of many modules, so that no caller has to wait for it.

    A SOURCE is a module's file, a folder (its *.wasm files), a digest, a folder in OCI's image
    layout, oci://HOST/REPOSITORY[:TAG][@sha256:DIGEST], @FILE with a source on each line, or -
    for such a list on standard input. Each module is compiled for each engine, target, cpu and
    value of a setting. What the daemon has is neither compiled nor read again.
    """
    session: Session = context.obj
    variants = every_variant(engines, targets, cpus, settings)
    with Sources(recursive, plain_http, fetch_timeout) as reader:
        read = _read(reader, reader.listed(sources), jobs)
        modules = each_once(module for one in read for module in one.result or ())
        with session.client() as client:
            cold, refused = missing(client, modules, variants)
        with session.client(max_attempts=_MAX_ATTEMPTS) as client:
            warmer = Warmer(client)
            compiled = _compiled(warmer, cold, jobs)
            # Not one of which an artifact is missing: its next call would fail, pinned or not.
            failing = {
                one.module for one, done in zip(cold, compiled, strict=True) if not done.result
            }
            whole = [module for module in modules if module not in failing]
            pinned = in_parallel(jobs, whole if pins else [], warmer.pin)

    outcome = Outcome(
        modules=len(modules),
        variants=len(variants) - len(refused),
        uploaded=warmer.uploaded,
        read=read,
        refused=refused,
        compiled=compiled,
        pinned=pinned,
    )
    document = outcome.document()
    session.emit(document, warm_table.warmed(outcome.warm_now, document))
    batch.report_failures(session, outcome.everything)
    if outcome.redis_unreachable:
        session.note("error: redis did not answer: other daemons learn of the pins when it does")
    # 1 for every kind of failure: a script asks only whether all is warm.
    context.exit(Exit.REFUSED if outcome.failed or outcome.redis_unreachable else Exit.OK)


def _read(reader: Sources, listed: list[str], jobs: int) -> list[Done[list[Module]]]:
    def read(source: str) -> Done[list[Module]]:
        done = batch.attempt(source, reader.modules)
        count.advance("")
        return done

    with counter("reading", len(listed)) as count:
        return in_parallel(jobs, listed, read)


def _compiled(warmer: Warmer, cold: list[Wanted], jobs: int) -> list[Done[ArtifactHeader]]:
    def compile_(one: Wanted) -> Done[ArtifactHeader]:
        done = warmer.warm(one)
        count.advance(_sentence(done))
        return done

    with counter("warming", len(cold)) as count:
        return in_parallel(jobs, cold, compile_)


def _sentence(done: Done[ArtifactHeader]) -> str:
    if done.result is None:
        return f"failed {done.source}"
    header = done.result
    took = time(header.compile_time)
    return f"warm {done.source}: {header.engine.id}, {size(header.size_bytes)}, compiled in {took}"
