"""The commands of `wasmkiln`, all but `warm`: options, a call, and its answer as JSON and text."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from wasmkiln.cli.app import Exit, Session, to_document
from wasmkiln.cli.connection import ARTIFACT, EVERYWHERE, command, usage
from wasmkiln.cli.inputs import (
    attempt_all,
    digest_of,
    each,
    read_file,
    report_failures,
    results_of,
)
from wasmkiln.cli.text import Printable, Progress, elapsed, seconds, size, table

_MOST_ATTESTATION_BYTES = 2**20


# --- modules in, artifacts out ----------------------------------------------------------------


_TIERS = ["memory", "host_store", "redis", "object_store"]


@command("""
files FILE...
--engine ENGINE  The engine that validates, e.g. wasmtime or wasmer-1.1.0.
""")
def load(session: Session, files: tuple[str, ...], engine: str | None) -> Exit:
    """Upload modules: the daemon validates and stores them."""
    with session.client() as client, Progress() as progress:

        def upload(file: str) -> dict[str, Any]:
            answer = client.load(file, engine=engine, on_progress=partial(progress.of, file))
            return {"file": file, **to_document(answer)}

        columns = "file:module sha256 size_bytes:size kind engine:validated_by"
        return each(session, "modules", files, upload, f"{columns} already_loaded:was_there")


@command(
    """
sources FILE|SHA256...
-o --output PATH  Where to write: a file for one module, or a folder, where each artifact becomes
                  NAME.ENGINE.cwasm. The header goes beside it as .json, the attestation as
                  .dsse.json. - is standard output, for one module, without header and table.
                  Without -o nothing is written.
--max-artifact-bytes SIZE       Refuse an artifact above this size, such as 512MiB.
                                [default: $WASMKILN_MAX_ARTIFACT_BYTES, else 1GiB]
--compression/--no-compression  Whether the daemon may send compressed artifacts.
                                [default: $WASMKILN_COMPRESSION, else only from another machine]
--into FILE                    Get code for the engine that compiled this, say an empty module as
                                .cwasm: the daemon chooses engine, target, cpu and settings.
--skip-cache-lookup            Compile even when a tier holds the artifact.
--accept-fast                  Take an artifact of the engine's fast compiler if the optimised one
                                is not there yet; the daemon then compiles that behind.
""",
    *ARTIFACT,
)
def compile(  # noqa: A001 - the command's name
    session: Session, sources: tuple[str, ...], output: str | None, **chosen: Any
) -> Exit:
    """Get the artifacts of modules; upload modules that the daemon does not have."""
    from wasmkiln.cli.place import Place

    chosen["omit_artifact"], session["stdout_is_taken"] = output is None, output == "-"
    if chosen["into"] is not None:
        chosen["into"] = _shown_by(chosen["into"])
    place = Place(output, sources)
    client = session.client(**{k: chosen.pop(k) for k in ("max_artifact_bytes", "compression")})
    with client, Progress() as progress:

        def compile_one(source: str) -> dict[str, Any]:
            start_s = time.perf_counter()
            artifact = client.compile(source, on_progress=partial(progress.of, source), **chosen)
            call_s = round(time.perf_counter() - start_s, 6)
            ours = {"source": source, "saved_to": place.save(source, artifact), "call_s": call_s}
            return ours | to_document(artifact.header)

        columns = "source:module engine.id:engine target cpu origin is_fast:fast size_bytes:size"
        columns += " compile_time_s:compile call_s:call saved_to"
        return each(session, "artifacts", sources, compile_one, columns)


def _shown_by(file: str) -> bytes:
    """Return what the engine says of itself that compiled a file."""
    from wasmkiln.loading import section_of

    with usage():
        return section_of(read_file(file))


@command("source FILE|SHA256", *ARTIFACT)
def host_file(session: Session, source: str, **chosen: Any) -> None:
    """Print where the artifact lies in this machine's host store; compile it if need be.

    For programs that load a file: wasmtime run --allow-precompiled "$(wasmkiln host-file m.wasm
    --engine wasmtime)". Without a daemon it finds what is there already.
    """
    found = str(session.call("host_file", source, **chosen))
    session.emit({"path": found}, Printable(found))  # as it is, so that a shell can use it


@command(
    """
sources FILE|SHA256...
--engine engines ENGINE...  Engine, e.g. wasmtime or wasmer-1.1.0; repeat for more.
""",
    *ARTIFACT[1:],
)
def find_missing(
    session: Session, sources: tuple[str, ...], engines: tuple[str, ...], **chosen: Any
) -> None:
    """Show which artifacts no tier of the daemon holds. Uploads nothing."""
    from wasmkiln import ArtifactKey

    names = {digest_of(source): source for source in reversed(sources)}
    keys = [
        ArtifactKey(module_sha256=digest, engine=engine, **chosen)
        for digest in reversed(names)
        for engine in engines or ("",)
    ]
    found = [(key.module_sha256, key.engine or None) for key in session.call("find_missing", keys)]
    missing = [{"source": names[it], "module_sha256": it, "engine": of} for it, of in found]
    count = f"{len(missing) or 'none'} of {len(keys)} artifacts missing"
    shown = table(missing, "source:missing module_sha256:sha256 engine")
    session.emit({"asked": len(keys), "missing": missing}, count, shown)


# --- ask, and change nothing -------------------------------------------------------------------


@command("""
--settings   List settings and their allowed values instead.
--isolation  List what confines the engines' jobs instead.
--of FILE    Show what the engine needs that compiled this .cwasm, and whether the daemon has it.
""")
def capabilities(session: Session, settings: bool, isolation: bool, of: str | None) -> None:
    """Show the daemon's engines, targets, cpus, settings and limits."""
    if of is not None:
        from wasmkiln.loading import EMPTY

        made = session.call("compile", EMPTY, into=_shown_by(of), omit_artifact=True).header
        code = {each: to_document(made)[each] for each in ("engine", "target", "cpu")}
        document = {**code, "settings": dict(made.changed_settings)}
        chosen = " ".join(f"{name}={value}" for name, value in made.changed_settings.items())
        row = {**document, "settings": chosen or "the defaults"}
        session.emit(document, table([row], "engine.id:engine target cpu settings"))
        return
    document = to_document(session.call("capabilities"))
    rows = document["engines"]
    shown = {
        "engine.id:engine default engine.core_version:core engine.compiler kinds:accepts "
        "targets.triple:targets targets.host targets.cpus:cpu_levels interpreter": rows,
        "engine.id:engine advisories.id:known_vulnerability advisories.summary "
        "advisories.fixed_in advisories.url:see": [row for row in rows if row["advisories"]],
        "id:not_served cause": document["unserved_engines"],
        "version limits.module_bytes:module limits.compile_time_s:compile limits.artifact_bytes "
        "limits.compile_memory_bytes:compile_memory limits.queue_length": [document],
    }
    columns = "settings.name:setting settings.default_value:default "
    columns += "settings.allowed_values:allowed settings.description:what_it_is"
    if isolation:
        columns = "isolation.holds:confined isolation.layers.name:layer isolation.layers.state "
        columns += "isolation.layers.detail isolation.attempts.name:attempt "
        columns += "isolation.attempts.refused"
    if settings or isolation:
        shown = {f"engine.id:engine {columns}": rows}
    if settings:  # and those that are otherwise for a target
        own = [{**row, **each} for row in rows for each in row["targets"] if each["settings"]]
        shown[f"engine.id:engine triple:target {columns}"] = own
    session.emit(document, *(table(some, columns) for columns, some in shown.items()))


@command()
def stats(session: Session) -> None:
    """Show counters and latencies of tiers, compiles and workers."""
    document = to_document(session.call("stats"))
    of = "p50_s:{0}p50 {1}.p90_s:p90 {1}.p99_s:p99"
    compiles = [one for one in document["compiles"] if one["count"]]
    names = [{"name": name, "is": engine} for name, engine in document["engine_names"].items()]
    head = "version uptime_s:up namespace hit_ratio redis_mode:redis redis_up:up redis_detail "
    head += "object_store_mode:objects object_store_up:up object_store_detail"
    now = "busy_workers queue_depth:queued flights flights_joined dropped_writes "
    now += "dropped_object_writes "
    tiers = "tier entries bytes pinned_bytes:pinned limit_bytes:limit hits misses evictions errors "
    warm_ups = "engine:new_engine from_engine:warm_from total:artifacts done failed ended:moved"
    session.emit(
        document,
        table([document], head),
        table([document], f"{now} quarantined_modules:quarantined pins"),
        table(document["tiers"], f"{tiers} get_latency.{of.format('get_', 'get_latency')}"),
        table(compiles, f"engine outcome count:compiles duration.{of.format('', 'duration')}"),
        table(document["workers"], "engine workers busy queued replaced"),
        table(names, "name is:engine_that_it_stands_for"),
        table(document["quotas"], "identity quota used limit refused"),
        table(document["engine_warm_ups"], warm_ups),
    )


@command("service [SERVICE]")
def health(session: Session, service: str | None) -> Exit:
    """Show whether the daemon, or one SERVICE of it, is serving."""
    with session.client() as client:
        status = client.health(service or "")
    document = {"address": client.address, "service": service or "", "status": status}
    session.emit(document, status)
    return Exit.OK if status == "SERVING" else Exit.NOT_NOW


@command()
def whoami(session: Session) -> None:
    """Show who you are to the daemon, and what you may do there."""
    with session.client() as client:
        caller = client.capabilities().caller
    document = {"address": client.address, **to_document(caller)}
    session.emit(document, table([document], "address:daemon identity roles namespace"))


# --- operate a daemon --------------------------------------------------------------------------


@command(
    """
--module FILE|SHA256      A module and all of its artifacts.
--engine ENGINE           Every artifact of one engine version.
--all                     Everything.
--tier TIER               This tier only.  [default: all tiers]
--yes                     Yes, of more than one module.
""",
    tier={"type": click.Choice(_TIERS), "metavar": None},
)
def evict(session: Session, module: str | None, yes: bool, **scope: Any) -> Exit:
    """Remove artifacts from the caches: of a module, of an engine, or all."""
    if (module is not None) + (scope["engine"] is not None) + scope["all"] != 1:
        raise click.UsageError("give one of --module, --engine and --all")
    if module is None and not yes:
        raise click.UsageError("--engine and --all need --yes")
    answer = session.call("evict", module, **scope)
    gone = f"evicted {answer.artifacts} artifacts, {answer.modules} modules, {size(answer.bytes)}"
    stayed = f"; {answer.pinned} stayed, as they are pinned" if answer.pinned else ""
    session.emit(to_document(answer), gone + stayed)
    tiers = ", ".join(answer.unreachable_tiers)
    what = "entries there may be left, or go in the background; evict again later"
    return _late(session, tiers, what)


@command(
    """
--grace SECONDS  Time for running calls; 0 ends them at once.  [default: the daemon's own]
--undo           Have a daemon that drains, and waits for calls, accept calls again.
"""
)
def drain(session: Session, grace: float | None, undo: bool) -> None:
    """End the daemon: it refuses new calls, finishes running ones, and exits.

    Returns at once. `wasmkiln health` exits with 3 once the daemon has ended.
    """
    if undo:
        undone = session.call("undo_drain")
        text = "accepts calls again" if undone.undone else "was not draining"
        session.emit(to_document(undone), f"the daemon {text}")
        return
    answer = session.call("drain", grace)
    left = elapsed(seconds(answer.grace))
    waits = (answer.calls or answer.flights) and left != "-"
    wait = f"waits at most {left} for them" if waits else "waits for nothing more"
    session.emit(
        to_document(answer),
        f"draining: {answer.calls} calls, {answer.flights} compilations; the daemon {wait}",
    )


@click.group()
def quarantine() -> None:
    """Show or release modules that broke a compiler and are refused for a while."""


@command(of=quarantine)
def quarantine_ls(session: Session) -> None:
    """List the refused modules, why, and for how long."""
    document = to_document(session.call("quarantined"))
    columns = "module_sha256:module engine message:why strikes time_left_s:time_left"
    session.emit(document, table(document["modules"], columns) or "no module is in quarantine")


@command(
    """
module [FILE|SHA256]
--all  Every module.
""",
    of=quarantine,
)
def quarantine_release(session: Session, module: str | None, **scope: Any) -> Exit:
    """Allow a module to be compiled again, and forget its failures."""
    if (module is not None) + scope["all"] != 1:
        raise click.UsageError("give a module, or --all")
    answer = session.call("release", module, **scope)
    session.emit(to_document(answer), f"released {answer.released}")
    return _late(session, answer.redis_unreachable, "others may still refuse; release again later")


@click.group(invoke_without_command=True, params=[*EVERYWHERE])
@click.pass_context
def jobs(context: click.Context) -> None:
    """List what the daemon's engines work on, and what waits for them; or end a job."""
    if context.invoked_subcommand is None:
        document = to_document(context.obj.call("jobs"))
        shown = table(document["jobs"], _JOBS) or "no job runs or waits"
        context.obj.emit(document, shown)


_JOBS = (
    "id namespace callers module_sha256:module engine work waited_s:waited ran_s:ran"
    " memory_bytes:memory"
)


@command("job ID", of=jobs)
def jobs_end(session: Session, job: str) -> Exit:
    """End a job: whoever waits for it learns that an operator ended it."""
    answer = session.call("end_job", job)
    found, document = answer.job, to_document(answer)
    if not answer.HasField("job"):
        session.emit(document)
        session.note("error: there is no such job any more, or it is another namespace's")
        return Exit.REFUSED
    session.emit(document, f"ended: {found.work} {found.module_sha256} with {found.engine}")
    return Exit.OK


@click.group()
def pin() -> None:
    """Pin modules: no tier evicts them or their artifacts to make room for others."""


_PINS = (
    "module_sha256:module created_at:pinned_at tiers.tier tiers.artifacts "
    "tiers.module:module_itself tiers.bytes"
)


@command(of=pin)
def pin_ls(session: Session) -> None:
    """List the pinned modules, and what each tier has of them."""
    document = to_document(session.call("pins"))
    session.emit(document, table(document["pins"], _PINS) or "no module is pinned")


@command("sources FILE|SHA256...", of=pin)
def pin_add(session: Session, sources: tuple[str, ...]) -> Exit:
    """Pin modules that the daemon has, by file or digest."""

    def shown(answers: list[Any]) -> tuple[dict[str, Any], str]:
        pins = [to_document(answer.pin) for answer in answers]
        return {"pins": pins}, table(pins, _PINS) or "no module is pinned"

    return _each_pin(session, "pin", sources, shown)


@command("sources FILE|SHA256...", of=pin)
def pin_rm(session: Session, sources: tuple[str, ...]) -> Exit:
    """Unpin modules. Their entries stay until others need the room, or they expire."""

    def shown(answers: list[Any]) -> tuple[dict[str, Any], str]:
        removed = sum(answer.removed for answer in answers)
        return {"removed": removed}, f"unpinned {removed} of {len(sources)}"

    return _each_pin(session, "unpin", sources, shown)


def _each_pin(session: Session, method: str, sources: tuple[str, ...], shown: Any) -> Exit:
    done = attempt_all(sources, partial(session.call, method))
    late = any(answer.redis_unreachable for answer in results_of(done))
    document, text = shown(results_of(done))
    session.emit({**document, "redis_unreachable": late}, text)
    failed = report_failures(session, done)
    return failed or _late(session, late, "other daemons learn of it when it does")


def _late(session: Session, tiers: str | bool, what: str) -> Exit:
    """Return OK, or say what follows from it that tiers did not answer."""
    if not tiers:
        return Exit.OK
    session.note(f"error: {'redis' if tiers is True else tiers} did not answer: {what}")
    return Exit.NOT_NOW


# --- check a file's attestation ------------------------------------------------------------------


@command(
    """
artifact [ARTIFACT]
--attestation FILE        The attestation.
                          [default: ARTIFACT.dsse.json, where compile -o writes it]
--key keys KEY|FILE|DIR...  A trusted public key: hex, base64, or PEM files; repeat for more.
                          [default: $WASMKILN_TRUSTED_KEYS]
--module FILE|SHA256      Also require the artifact of this module.
--fingerprint HEX         Also require this fingerprint.
--recompile FILE|SHA256   Have the daemon compile this module again, and require the same artifact:
                          ARTIFACT, or without it the one that the daemon holds.
""",
    *ARTIFACT,
)
def verify(
    session: Session, artifact: str | None, attestation: str | None, keys: Any, **chosen: Any
) -> None:
    """Check that a trusted key signed an artifact's file, or that it can be compiled again.

    Calls no daemon but for --recompile. Without ARTIFACT, --engine, --target, --cpu and --set say
    which of the module's artifacts is meant.
    """
    from wasmkiln import AttestationInvalid, TrustedKeys
    from wasmkiln.attestation import open_envelope

    module, fingerprint, recompile = map(chosen.pop, ("module", "fingerprint", "recompile"))
    if artifact is None:
        if recompile is None:
            raise click.UsageError("give ARTIFACT, --recompile, or both")
        digest = _recompiled(session, recompile, None, chosen)
        same = {"artifact_sha256": digest, "recompiled_sha256": digest}
        session.emit(same, f"compiled again, the artifact is the same: {digest}")
        return
    with usage():
        trusted = TrustedKeys.choose(keys or None)
    if not trusted:
        raise click.UsageError("no trusted key: give --key, or set WASMKILN_TRUSTED_KEYS")
    envelope = Path(attestation or f"{artifact}.dsse.json")
    if not envelope.exists():
        raise click.UsageError(f"there is no {envelope}: give the attestation with --attestation")
    signed = read_file(str(envelope), _MOST_ATTESTATION_BYTES)
    statement, key_id = open_envelope(signed, trusted)
    claims, module = statement.claims, module or recompile
    wanted = {
        "artifact_sha256": hashlib.sha256(read_file(artifact)).hexdigest(),
        "module_sha256": module and digest_of(module),
        "fingerprint": fingerprint and fingerprint.lower(),
    }
    for name, want in wanted.items():
        if want is not None and (attested := getattr(claims, name)) != want:
            what = f"{name.replace('_', ' ')}: {attested}, not {want}"
            why = {"cause": "mismatch"}
            raise AttestationInvalid(f"the attestation is about another {what}", metadata=why)
    again = None
    if recompile is not None:
        chosen = {"target": claims.target, "cpu": claims.cpu, "settings": claims.changed_settings}
        chosen["engine"] = f"{claims.engine['name']}-{claims.engine['version']}"
        again = _recompiled(session, recompile, claims.artifact_sha256, chosen)
    unchecked = [name.removesuffix("_sha256") for name, want in wanted.items() if want is None]
    told = {"key_id": key_id, "recompiled_sha256": again, **asdict(statement)}
    told |= told.pop("claims")
    shown = (f"{name.replace('_', ' ')}: {value}" for name, value in told.items())
    document: Any = {"verified": True, "not_checked": unchecked, **told}
    session.emit(document, f"{artifact} is verified", *shown)
    for name in unchecked:
        session.note(f"not checked: whether it is of the {name} that you mean: give --{name}")


def _recompiled(session: Session, module: str, wanted: str | None, chosen: dict[str, Any]) -> str:
    """Return the digest of what the daemon compiles now. Raise ArtifactMismatch if it is another.

    Without `wanted` it has to be that of the artifact that the daemon holds, or makes first.
    """
    from wasmkiln import ArtifactMismatch

    def compiled(again: bool) -> str:
        made = client.compile(module, skip_cache_lookup=again, omit_artifact=True, **chosen)
        return made.header.artifact_sha256

    with session.client() as client, Progress() as progress:
        progress.show(f"compiling {module} again")
        before = wanted or compiled(again=False)
        now = compiled(again=True)
    if now != before:
        raise ArtifactMismatch(f"compiled again, the artifact is another one: {now}, not {before}")
    return now
