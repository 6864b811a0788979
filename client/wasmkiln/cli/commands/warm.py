"""`wasmkiln warm`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wasmkiln._requests import identify
from wasmkiln.cli import batch, tables
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.exits import Exit
from wasmkiln.cli.json_output import to_document
from wasmkiln.cli.options import artifact_options
from wasmkiln.cli.progress import counter
from wasmkiln.v1.types_pb2 import ArtifactHeader, ArtifactKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from wasmkiln.cli.session import Session
    from wasmkiln.client import Client

# Warming many modules fills the queue, and the daemon says when to try again.
_MAX_ATTEMPTS = 10


@dataclass(frozen=True)
class Wanted:
    """An artifact that the daemon should hold."""

    file: str
    key: ArtifactKey

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.file} [{self.key.engine}]" if self.key.engine else self.file


@click.command()
@click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR"
)
@artifact_options(several_engines=True)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Calls at the same time.",
)
@click.option("--recursive", is_flag=True, help="Go into sub-folders.")
@connection_options
@click.pass_context
def warm(
    context: click.Context,
    folder: Path,
    engines: tuple[str, ...],
    target: str | None,
    cpu: str | None,
    settings: dict[str, str],
    jobs: int,
    recursive: bool,
) -> None:
    """Compile what is missing of all *.wasm files in a folder."""
    session: Session = context.obj
    files = sorted(
        str(path)
        for path in (folder.rglob("*.wasm") if recursive else folder.glob("*.wasm"))
        # A broken link counts, and fails: a deployment must not miss a module without a word.
        if path.is_file() or not path.exists()
    )
    if not files:
        raise click.UsageError(f"no *.wasm file in {folder}")

    read = [batch.attempt(file, lambda file: identify(file).sha256) for file in files]
    wanted = [
        Wanted(
            one.source,
            ArtifactKey(
                module_sha256=one.result, engine=engine, target=target, cpu=cpu, settings=settings
            ),
        )
        for one in read
        if one.result is not None
        for engine in engines or ("",)
    ]
    with session.client() as client:
        cold = {_identity(key) for key in client.find_missing(one.key for one in wanted)}
    missing = [one for one in wanted if _identity(one.key) in cold]
    with session.client(max_attempts=_MAX_ATTEMPTS) as client:
        compiled = _in_parallel(jobs, missing, lambda one: _compile(client, one))

    warm_now = [(one.source, one.result) for one in compiled if one.result is not None]
    failures: list[batch.Done[Any]] = [*read, *compiled]
    failed = sum(one.error is not None for one in failures)
    warm_before = len(wanted) - len(missing)
    document = {
        "files": len(files),
        "warm_before": warm_before,
        "compiled": len(warm_now),
        "failed": failed,
        "artifacts": [{"source": name, **to_document(header)} for name, header in warm_now],
        "errors": batch.errors_in(failures),
    }
    session.emit(document, tables.warmed(len(files), warm_before, warm_now, failed))
    batch.report_failures(session, failures)
    # 1 for every kind of failure: a script asks only whether the folder is warm.
    context.exit(Exit.REFUSED if failed else Exit.OK)


def _compile(client: Client, one: Wanted) -> ArtifactHeader:
    return client.compile(
        one.file,
        engine=one.key.engine,
        target=one.key.target,
        cpu=one.key.cpu,
        settings=one.key.settings,
        omit_artifact=True,
        background=True,
    ).header


def _in_parallel(
    jobs: int, wanted: list[Wanted], work: Callable[[Wanted], ArtifactHeader]
) -> list[batch.Done[ArtifactHeader]]:
    def run(one: Wanted) -> batch.Done[ArtifactHeader]:
        done = batch.attempt(one.name, lambda _: work(one))
        bar.advance(bar.task_ids[0])
        return done

    pool = ThreadPoolExecutor(jobs, thread_name_prefix="warm")
    try:
        with counter("warming", len(wanted)) as bar:
            return list(pool.map(run, wanted))
    finally:
        # On an interrupt: drop what has not begun; closing the client ends the rest.
        pool.shutdown(wait=False, cancel_futures=True)


def _identity(key: ArtifactKey) -> tuple[str, str]:
    return key.module_sha256, key.engine
