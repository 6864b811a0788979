"""The output of each command as people read it; each function returns it for `Session.emit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group

from wasmkiln.cli.grid import Grid, lines
from wasmkiln.cli.text import elapsed, size, time, word
from wasmkiln.v1.module_service_pb2 import IsolationLayer
from wasmkiln.v1.types_pb2 import Kind, Origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from wasmkiln.attestation import Statement
    from wasmkiln.v1.admin_service_pb2 import (
        DrainResponse,
        EvictResponse,
        ListQuarantineResponse,
    )
    from wasmkiln.v1.module_service_pb2 import (
        GetCapabilitiesResponse,
        LoadResponse,
    )
    from wasmkiln.v1.types_pb2 import ArtifactHeader


@dataclass(frozen=True)
class Compiled:
    """A row of `compile`: a header, the seconds of the call, and the path of the bytes."""

    source: str
    header: ArtifactHeader
    call_s: float
    saved_to: Path | None


def loaded(modules: Iterable[tuple[str, LoadResponse]]) -> RenderableType:
    """Show the modules that `load` uploaded."""
    table = Grid("module", "sha256", ">size", "kind", "validated by", "was there")
    for file, answer in modules:
        table.row(
            file,
            answer.sha256,
            size(answer.size_bytes),
            word(Kind, answer.kind),
            answer.engine,
            "yes" if answer.already_loaded else "no",
        )
    return table.shown()


def compiled(artifacts: Iterable[Compiled]) -> RenderableType:
    """Show the artifacts that `compile` received."""
    table = Grid(
        "module", "engine", "target", "cpu", "origin", ">size", ">compile", ">call", "saved to"
    )
    for one in artifacts:
        header = one.header
        table.row(
            one.source,
            header.engine.id,
            header.target,
            header.cpu,
            word(Origin, header.origin) + (", fast" if header.is_fast else ""),
            size(header.size_bytes),
            time(header.compile_time),
            elapsed(one.call_s),
            str(one.saved_to) if one.saved_to else "-",
        )
    return table.shown()


def verified(artifact: str, statement: Statement, key_id: str) -> RenderableType:
    """Show the statement that `verify` checked."""
    claims = statement.claims
    table = Grid(artifact, "is verified")
    for name, text in (
        ("signed by key", key_id),
        ("module", claims.module_sha256),
        ("engine", f"{claims.engine.get('name')}-{claims.engine.get('version')}"),
        ("target", f"{claims.target}, {claims.cpu}"),
        ("fingerprint", claims.fingerprint),
        ("made by", f"wasmkilnd {statement.daemon_version}, {statement.finished_on}"),
    ):
        table.row(name, text)
    return table.shown()


def missing(rows: Sequence[tuple[str, str, str]], asked: int) -> RenderableType:
    """Show what `find-missing` found: source, digest and engine of each."""
    if not rows:
        return f"none of {asked} artifacts missing"
    table = Grid("missing", "sha256", "engine", title=f"{len(rows)} of {asked} artifacts missing")
    for source, digest, engine in rows:
        table.row(source, digest, engine or "default")
    return table.shown()


def evicted(answer: EvictResponse) -> RenderableType:
    """Show how much `evict` removed."""
    gone = f"evicted {answer.artifacts} artifacts, {answer.modules} modules, {size(answer.bytes)}"
    return f"{gone}; {answer.pinned} stayed, as they are pinned" if answer.pinned else gone


def quarantined(answer: ListQuarantineResponse) -> RenderableType:
    """Show the modules in quarantine."""
    if not answer.modules:
        return "no module is in quarantine"
    table = Grid("module", "engine", "why", ">strikes", ">time left")
    for one in answer.modules:
        table.row(
            one.module_sha256,
            one.engine,
            one.message,
            str(one.strikes),
            time(one.time_left),
        )
    return table.shown()


def draining(answer: DrainResponse) -> RenderableType:
    """Show what the daemon still waits for after `drain`."""
    left = time(answer.grace) if answer.calls or answer.flights else "-"
    wait = f"waits at most {left} for them" if left != "-" else "waits for nothing more"
    return f"draining: {answer.calls} calls, {answer.flights} compilations; the daemon {wait}"


def engines(answer: GetCapabilitiesResponse) -> RenderableType:
    """Show engines, targets and limits."""
    table = Grid(
        "engine", "core", "compiler", "accepts", "targets", "cpu levels", "interpreter",
        title=f"wasmkilnd {answer.version}",
    )  # fmt: skip
    for one in answer.engines:
        targets = [f"{t.triple} (host)" if t.host else t.triple for t in one.targets]
        table.row(
            f"{one.engine.id} (default)" if one.default else one.engine.id,
            one.engine.core_version,
            one.engine.compiler,
            [word(Kind, kind) for kind in one.kinds],
            targets,
            [", ".join(target.cpus) for target in one.targets],
            one.interpreter,
        )
    limits = answer.limits
    return Group(
        table.shown(),
        *lines(
            f"{one.engine.id} has a known vulnerability: {row.id}: {row.summary}; "
            + (f"fixed in {', '.join(row.fixed_in)}" if row.fixed_in else "no release fixes it")
            + f"; see {row.url}"
            for one in answer.engines
            for row in one.advisories
        ),
        *lines(f"not served: {one.id}: {one.cause}" for one in answer.unserved_engines),
        f"limits: module {size(limits.module_bytes)}, "
        f"compile {time(limits.compile_time)} and "
        f"{size(limits.compile_memory_bytes)} of memory, "
        f"artifact {size(limits.artifact_bytes)}, queue {limits.queue_length}",
    )


def settings(answer: GetCapabilitiesResponse) -> RenderableType:
    """Show the settings of each engine."""
    table = Grid("engine", "setting", "default", "allowed", "what it is")
    for one in answer.engines:
        for setting in one.settings:
            table.row(
                one.engine.id,
                setting.name,
                setting.default_value,
                ", ".join(setting.allowed_values),
                setting.description,
            )
        table.section()
    return table.shown()


def isolation(answer: GetCapabilitiesResponse) -> RenderableType:
    """Show what confines the jobs of each engine."""
    table = Grid("engine", "jobs are", "layer", "state", "detail")
    for one in answer.engines:
        found = one.isolation
        holes = [attempt.name for attempt in found.attempts if not attempt.refused]
        could = f"not confined: they can {', '.join(holes) or 'do anything'}"
        for index, layer in enumerate(found.layers):
            table.row(
                "" if index else one.engine.id,
                "" if index else "confined" if found.holds else could,
                layer.name,
                word(IsolationLayer.State, layer.state),
                layer.detail,
            )
        if not found.layers:
            table.row(one.engine.id, could)
        table.section()
    return table.shown()
