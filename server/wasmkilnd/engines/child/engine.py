"""The protocol that each engine implements for its jobs."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Any, Protocol


class SettingsRefused(Exception):  # noqa: N818 - a verdict
    """The engine does not support this combination of settings."""


class ModuleRefused(Exception):  # noqa: N818 - a verdict
    """The engine finds the module invalid. ``str()`` is the engine's own message."""


class FeatureLacking(Exception):  # noqa: N818 - a verdict
    """The engine finds the module valid, but does not compile it. ``str()`` says why."""


@dataclass(frozen=True)
class Extern:
    """One import or export; ``module`` is empty for exports and components."""

    module: str
    name: str
    kind: str
    type: str


@dataclass(frozen=True)
class Description:
    """What an engine reports about itself."""

    name: str
    version: str
    core_version: str
    compiler: str
    host_triple: str
    host_cpu_features: list[str]
    candidate_targets: list[str]
    """Triples to try; the host's first."""
    setting_values: dict[str, list[str]]
    """Candidate values of each candidate setting."""
    setting_descriptions: dict[str, str]
    kinds: list[str] = field(default_factory=lambda: ["core"])
    compiler_setting: str = ""
    """The setting that chooses the engine's compiler; empty if there is one only."""


class Engine(Protocol):
    """One engine, imported. Single-threaded until something is compiled."""

    name: str

    def describe(self) -> Description:
        """Return a description. May compile, so call it only in a process of its own."""
        ...

    def configure(self, target: str, cpu: str, settings: dict[str, str]) -> Any:
        """Return the engine's own configuration object. Raises SettingsRefused, or aborts."""
        ...

    def validate(self, configured: Any, wasm: bytearray, kind: str) -> None:
        """Raise ModuleRefused unless ``wasm`` is valid.

        An engine that has to compile in order to validate may raise FeatureLacking.
        """
        ...

    def compile(self, configured: Any, wasm: bytearray, kind: str) -> Any:
        """Return the engine's own module. Raises ModuleRefused or FeatureLacking.

        A core module is validated as a whole first: an invalid one costs no compile.
        """
        ...

    def serialize(self, module: Any) -> bytes | bytearray:
        """Return the artifact."""
        ...

    def externs(self, configured: Any, module: Any) -> tuple[list[Extern], list[Extern]]:
        """List imports and exports in the module's order. May abort: call it last."""
        ...

    def call(
        self, configured: Any, artifact: bytearray, kind: str, export: str, arguments: list[int]
    ) -> Any:
        """Load an artifact that is known to be good; return what its function returns."""
        ...


# The last match counts: a message quotes names of the module before it tells the offset.
_OFFSET = re.compile(r".*\bat offset (0x[0-9a-fA-F]{1,16}|[0-9]{1,19})\b", re.DOTALL)


def offset_in(message: str) -> int | None:
    """Return the byte offset that an engine's message names."""
    found = _OFFSET.match(message)
    return int(found.group(1), 0) if found else None


def interpreter() -> str:
    """Return this interpreter's name and version, e.g. ``CPython 3.10.13``."""
    name = {"cpython": "CPython", "pypy": "PyPy"}.get(sys.implementation.name, "Python")
    return f"{name} {sys.version.split()[0]}"
