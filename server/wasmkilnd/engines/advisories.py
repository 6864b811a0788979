"""Which releases of an engine have a known vulnerability in the code that they compile.

The table of this release is ``advisories.toml`` beside this file; an operator adds rows by the
setting ``advisories_file``. A row names releases, compilers and targets, since an engine can have
several compilers and compile for several machines. What it is about is in the artifacts: to patch a
host does not unmake it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import structlog
from packaging.specifiers import SpecifierSet
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from wasmkilnd.engines.registry import ServedEngine
from wasmkilnd.files.operator_files import CannotUse, read
from wasmkilnd.mistakes import sentences
from wasmkilnd.settings import parse_toml

log = structlog.get_logger("wasmkilnd.engines")

BUILT_IN = Path(__file__).with_name("advisories.toml")

_Line = Annotated[str, Field(pattern=r"^\S[^\n]*$", max_length=500)]


def _releases(value: object) -> SpecifierSet:
    if not isinstance(value, str) or not value.strip():
        raise ValueError('expected releases, such as ">= 37.0.0, < 42.0.2"')
    return SpecifierSet(value)


_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)


class Advisory(BaseModel, frozen=True):
    """One row of the table."""

    model_config = _STRICT

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=100)]
    summary: _Line
    engine: Literal["wasmer", "wasmtime"]
    # Ranges of the engine's versions, as RustSec writes them: ">= 37.0.0, < 42.0.2".
    affected: Annotated[
        tuple[Annotated[SpecifierSet, BeforeValidator(_releases)], ...], Field(min_length=1)
    ]
    # The compilers whose code has it; empty for all.
    compilers: tuple[Literal["cranelift", "singlepass", "winch"], ...] = ()
    # The machines whose code has it: how a target's triple begins; empty for all.
    targets: tuple[Literal["aarch64", "riscv64gc", "s390x", "x86_64"], ...] = ()
    # The first releases without it; empty if there is none.
    fixed_in: tuple[_Line, ...]
    url: Annotated[str, Field(pattern=r"^https?://\S+$", max_length=500)]

    @property
    def text(self) -> str:
        """The row as a sentence for people."""
        fixed = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no release fixes it"
        return f"{self.id}: {self.summary}; {fixed}; see {self.url}"

    def concerns(self, engine: ServedEngine) -> bool:
        """Return whether code that ``engine`` compiles here can have it."""
        machines = {target.triple.partition("-")[0] for target in engine.capabilities.targets}
        version = engine.capabilities.identity.version
        return (
            self.engine == engine.name
            and any(releases.contains(version, prereleases=True) for releases in self.affected)
            and (not self.compilers or not engine.compilers.isdisjoint(self.compilers))
            and (not self.targets or not machines.isdisjoint(self.targets))
        )


class _File(BaseModel):
    model_config = _STRICT

    advisory: Annotated[tuple[Advisory, ...], Field(max_length=1000)]


@dataclass(frozen=True, slots=True)
class Advisories:
    """The whole table, and what follows from it."""

    rows: Sequence[Advisory]
    # Whether an engine that an advisory concerns is not served.
    refuse: bool
    _found: dict[str, Sequence[Advisory]] = field(default_factory=dict, init=False)

    def of(self, engine: ServedEngine) -> Sequence[Advisory]:
        """Return the advisories that concern an engine; compared once, since callers ask often."""
        if engine.id not in self._found:
            self._found[engine.id] = [row for row in self.rows if row.concerns(engine)]
        return self._found[engine.id]

    def why(self, engine: ServedEngine) -> str:
        """Return why an engine is not to be served; empty if it is."""
        if not self.refuse or not (rows := self.of(engine)):
            return ""
        ids = ", ".join(row.id for row in rows)
        return f"its code has a known vulnerability ({ids}), and vulnerable_engines is refuse"

    def warn(self, engines: Iterable[ServedEngine]) -> None:
        """Log each engine that an advisory concerns."""
        for engine in engines:
            if found := self.of(engine):
                log.warning(
                    "engine has a known vulnerability",
                    engine=engine.id,
                    advisories=[row.id for row in found],
                    advice="`wasmkiln capabilities` tells which, and what releases lack them",
                )


def read_advisories(file: str, *, refuse: bool) -> Advisories:
    """Return the built-in table and the rows of ``file``, if it is not empty. May block.

    Raises CannotUse if the file cannot be used.
    """
    try:
        rows = _rows(read("advisories_file", Path(file))) if file else ()
        return Advisories([*_rows(BUILT_IN.read_bytes()), *rows], refuse)
    except ValueError as mistake:
        raise CannotUse(f"cannot use advisories_file {file}: {mistake}") from None


def _rows(content: bytes) -> Sequence[Advisory]:
    """Return the rows of a file. Raises ValueError with the first thing that is wrong."""
    try:
        return _File.model_validate(parse_toml(content.decode())).advisory
    except ValidationError as error:
        raise ValueError(sentences(error)[0]) from None
