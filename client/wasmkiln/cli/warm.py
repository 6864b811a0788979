"""`wasmkiln warm`: compile what is missing of many modules, from files, folders, lists and images.

Each module has a SHA-256 before anything is sent. The daemon is asked which artifacts no tier has;
each of these is asked for by digest, and a module that the daemon lacks is read and uploaded once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, product
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from wasmkiln.cli import inputs
from wasmkiln.cli.app import Exit, Session, exit_for, to_document
from wasmkiln.cli.connection import command
from wasmkiln.cli.inputs import Done, attempt, digest_of, in_parallel, read_file, results_of
from wasmkiln.cli.oci import Module, SourceUnusable, is_layout, modules_in
from wasmkiln.cli.text import Progress, elapsed, quoted, seconds, size, table
from wasmkiln.shared import is_digest

if TYPE_CHECKING:
    from wasmkiln import ArtifactHeader, Client

_MOST_LIST_BYTES = 16 * 2**20
# Warming many modules fills the queue, and the daemon says when to try again.
_MAX_ATTEMPTS = 10


@command(
    """
sources SOURCE...
--engine engines ENGINE...  Engine, e.g. wasmtime or wasmer-1.1.0; repeat for more.
--target targets TRIPLE...  Target, e.g. x86_64-unknown-linux-gnu; repeat for more.
--cpu cpus LEVEL...       CPU level, e.g. x86-64-v3 or baseline; repeat for more.
--set settings NAME=VALUE...  A setting; several values of one name are alternatives.
--jobs N                  Calls at the same time.
--pin pins                Pin the modules that are warm then; needs the role admin.
--recursive/--no-recursive  Go into the folders of a folder, or not.
""",
    jobs={"type": click.IntRange(1, 1_000), "default": 4, "show_default": True},
    recursive={"default": True},
)
def warm(session: Session, sources: Sequence[str], jobs: int, pins: bool, **how: Any) -> Exit:
    """Compile what is missing of many modules, so that no caller has to wait for it.

    A SOURCE is a module's file, a folder (its *.wasm files), a digest, a folder in OCI's image
    layout, @FILE with a source on each line, or - for such a list on standard input. Each module
    is compiled for each engine, target, cpu and value of a setting. What the daemon has is neither
    compiled nor read again.
    """
    named = ("engines", "targets", "cpus", "settings")
    variants = _variants(*(how.pop(name) for name in named))
    found = dict(one for source in _expanded(sources) for one in _readers(source, **how))
    with Progress() as progress:
        progress.show(f"reading {len(found)} sources")
        read_all = in_parallel(jobs, list(found), lambda name: attempt(name, found[name]))
    modules: dict[str, Module] = {}
    for module in chain(*results_of(read_all)):
        before = modules.setdefault(module.sha256, module)
        before.read = before.read or module.read  # of the same bytes, one that can be read counts
    with session.client() as client:  # which says soon that no daemon answers
        wanted, refused = _missing(client, list(modules.values()), variants)
    uploaded: set[str] = set()
    with session.client(max_attempts=_MAX_ATTEMPTS) as client:
        with Progress("warming", len(wanted)) as progress:
            compile_one = partial(_compiled, client, uploaded, progress, Event())
            compiled = in_parallel(jobs, wanted, compile_one)
        # Not one of which an artifact is missing: its next call would fail, pinned or not.
        pairs = zip(wanted, compiled, strict=True)
        cold = {module.sha256 for (module, _), done in pairs if not done.result}
        whole = [module for module in modules.values() if pins and module.sha256 not in cold]
        pinned = in_parallel(
            jobs, whole, lambda each: attempt(each.name, lambda: client.pin(each.sha256))
        )
    everything = [*read_all, *refused, *compiled, *pinned]
    rows = [{"source": done.source, **to_document(done.result)} for done in compiled if done.result]
    count = {
        "modules": len(modules) + len(read_all) - len(results_of(read_all)),
        "warm_before": len(modules) * (len(variants) - len(refused)) - len(compiled),
        "compiled": len(rows),
        "uploaded": len(uploaded),
        "pinned": len(results_of(pinned)),
        "failed": len(everything) - len(results_of(everything)),
    }
    session.emit(
        {**count, "artifacts": rows, "errors": inputs.errors_in(everything)},
        table(rows, "source:module engine.id:engine origin size_bytes:size compile_time_s:compile"),
        "{modules} modules: {warm_before} warm before, {compiled} compiled, {failed} failed; "
        "{uploaded} uploaded; {pinned} pinned".format(**count),
    )
    inputs.report_failures(session, everything)
    late = any(answer.redis_unreachable for answer in results_of(pinned))
    if late:
        session.note("error: redis did not answer: other daemons learn of the pins when it does")
    # 1 for every kind of failure: a script asks only whether all is warm.
    return Exit.REFUSED if count["failed"] or late else Exit.OK


def _variants(
    engines: Sequence[str], targets: Sequence[str], cpus: Sequence[str], settings: Any
) -> list[dict[str, Any]]:
    """Return what each artifact of a module is made for: the product of all options."""
    values: dict[str, dict[str, None]] = {}
    for name, value in settings:
        values.setdefault(name, {})[value] = None
    pools = [dict.fromkeys(each or [""]) for each in (engines, targets, cpus)]
    pools += values.values()
    return [
        {"engine": e, "target": t, "cpu": c, "settings": dict(zip(values, chosen, strict=True))}
        for e, t, c, *chosen in product(*pools)
    ]


# --- sources -----------------------------------------------------------------------------------


def _expanded(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the sources that arguments name: of a list, its lines."""
    for source in arguments:
        if source != "-" and not source.startswith("@"):
            yield source
            continue
        name = source.removeprefix("@")
        try:
            text = read_file(name, _MOST_LIST_BYTES).decode()
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise click.UsageError(f"cannot read the list {name}: {why}") from None
        for line in map(str.strip, text.splitlines()):
            if line and not line.startswith("#"):
                yield line


def _readers(source: str, recursive: bool) -> Iterator[tuple[str, Callable[[], list[Module]]]]:
    """Yield what a source names, and what reads the modules of each.

    A folder becomes its files. Raise click.UsageError for what is no source, before anything is
    sent.
    """
    path, digest = Path(source), source.removeprefix("sha256:")
    if is_layout(path):
        yield source, partial(modules_in, path)
    elif os.path.lexists(path):  # raises nothing, whatever the name
        for file in _wasm_files(path, recursive) if path.is_dir() else [source]:
            yield file, partial(_from_file, file)
    elif is_digest(digest):
        yield source, lambda: [Module(digest, digest)]
    else:
        why = "does not exist: give files, folders, SHA-256 digests, or images that skopeo copied"
        raise click.UsageError(f"{quoted(source)} {why}")


def _wasm_files(folder: Path, recursive: bool) -> list[str]:
    def refuse(error: OSError) -> None:  # a deployment must not miss a module without a word
        name = quoted(str(Path(error.filename)))
        raise click.UsageError(f"cannot read the folder {name}: {error.strerror}")

    files: list[str] = []
    for here, folders, names in os.walk(folder, onerror=refuse):
        if not recursive:
            folders.clear()
        paths = [str(Path(here, name)) for name in names if name.endswith(".wasm")]
        # What cannot be looked at counts, and fails, as a broken link does.
        files += [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]  # noqa: PTH110, PTH113
    if not files:
        raise click.UsageError(f"no *.wasm file in {folder}")
    return sorted(files)


def _from_file(name: str) -> list[Module]:
    sha256 = digest_of(name)

    def read() -> str:
        if digest_of(name) != sha256:
            raise SourceUnusable(f"{name} changed meanwhile: warm it again")
        return name

    return [Module(name, sha256, read)]


# --- the work ----------------------------------------------------------------------------------


# An artifact that the daemon should hold: its module, and what it is made for.
_Wanted = tuple[Module, dict[str, Any]]


def _label(variant: dict[str, Any]) -> str:
    """Return what was said of a variant; "" if nothing was."""
    settings = (f"{name}={value}" for name, value in variant["settings"].items())
    said = (variant["engine"], variant["target"], variant["cpu"], *settings)
    return " ".join(filter(None, said))


def _missing(
    client: Client, modules: Sequence[Module], variants: Sequence[dict[str, Any]]
) -> tuple[list[_Wanted], list[Done]]:
    """Return what no tier holds, and a failure for each variant that the daemon does not have.

    Variants follow each other, not modules: so that threads upload different modules.
    """
    from wasmkiln import ArtifactKey

    wanted: list[_Wanted] = []
    refused: list[Done] = []
    for variant in variants:
        keys = [ArtifactKey(module_sha256=module.sha256, **variant) for module in modules]
        done = attempt(_label(variant) or "the default engine", partial(client.find_missing, keys))
        if done.error and exit_for(done.error) is not Exit.REFUSED:
            raise done.error  # which is not about this variant
        refused += [done] if done.error else []
        digests = {key.module_sha256 for key in done.result or ()}
        wanted += [(module, variant) for module in modules if module.sha256 in digests]
    return wanted, refused


def _compiled(
    client: Client, uploaded: set[str], progress: Progress, gone: Event, one: _Wanted
) -> Done:
    """Compile one; without a try when no daemon answered another one. Called by many threads."""
    module, variant = one
    label = _label(variant)
    name = f"{module.name} [{label}]" if label else module.name

    def work() -> ArtifactHeader:
        from wasmkiln import ModuleNotLoaded

        def ask(source: str | bytes) -> ArtifactHeader:
            how: Any = {**variant, "omit_artifact": True, "background": True}
            return client.compile(source, **how).header

        try:
            return ask(module.sha256)
        except ModuleNotLoaded:
            if module.read is None:
                raise
        with module.uploading:
            if module.sha256 not in uploaded:
                header = ask(module.read())
                uploaded.add(module.sha256)
                return header
        return ask(module.sha256)

    done = Done(name) if gone.is_set() else attempt(name, work)
    if done.error and exit_for(done.error) is Exit.UNREACHABLE:
        gone.set()
    if (header := done.result) is None:
        progress.count(f"failed {name}")
    else:
        took = f"{size(header.size_bytes)}, compiled in {elapsed(seconds(header.compile_time))}"
        progress.count(f"warm {name}: {header.engine.id}, {took}")
    return done
