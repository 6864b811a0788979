"""What each engine implements for its jobs."""

from __future__ import annotations

import importlib
import re
from typing import Any, Protocol


class Refused(Exception):  # noqa: N818 - a verdict
    """What the engine does not do. ``str()`` is its own message."""

    outcome = ""


class SettingsRefused(Refused):
    """The engine does not support this combination of settings."""

    outcome = "settings_refused"


class ModuleRefused(Refused):
    """The engine finds the module invalid."""

    outcome = "invalid"


class FeatureLacking(Refused):
    """The engine finds the module valid, but does not compile it."""

    outcome = "unsupported"


# One import or export: its module, which is empty for exports and components, its name, kind, type.
Extern = tuple[str, str, str, str]


class Engine(Protocol):
    """A module of this package that imports an engine. One thread until something is compiled."""

    # Return what the engine reports about itself, as JSON-ready data: name, version, core_version,
    # compiler, host_triple, host_cpu_features, kinds; candidate_targets, the triples to try, the
    # host's first; candidate_settings, by name a sentence, and by value the settings to try it
    # with; and compiler_setting, the one that chooses the compiler. May compile: call it in a job
    # only.
    def describe(self) -> dict[str, Any]: ...

    # Return the engine's own configuration object. Raises SettingsRefused, or aborts.
    def configure(self, target: str, cpu: str, settings: dict[str, str]) -> Any: ...

    # Raise ModuleRefused unless ``wasm`` is valid; FeatureLacking where that takes a compile.
    def validate(self, configured: Any, wasm: bytearray, kind: str) -> None: ...

    # Return the engine's own module, whose method ``serialize`` returns the artifact. Raises
    # ModuleRefused or FeatureLacking. A core module is validated as a whole first: an invalid one
    # costs no compile.
    def compile_module(self, configured: Any, wasm: bytearray, kind: str) -> Any: ...

    # List imports and exports in the module's order. May abort: call it last.
    def externs(self, configured: Any, module: Any) -> tuple[list[Extern], list[Extern]]: ...

    # Load an artifact that is known to be good; return what its function returns.
    def call(
        self, configured: Any, artifact: bytearray, kind: str, export: str, args: list[int]
    ) -> Any: ...


def load(name: str) -> Engine:
    """Import the engine called ``name``. Raises ImportError."""
    engine: Any = importlib.import_module(f".{name}_engine", __package__)
    return engine  # type: ignore[no-any-return]


def bounds(minimum: int, maximum: int | None) -> str:
    """Return the limits of a table or memory as the list of imports and exports has them."""
    return f"{minimum}..{'' if maximum is None else maximum}"


# The last match counts: a message quotes names of the module before it tells the offset.
_OFFSET = re.compile(r".*\bat offset (0x[0-9a-fA-F]{1,16}|[0-9]{1,19})\b", re.DOTALL)


def offset_in(message: str) -> int | None:
    """Return the byte offset that an engine's message names."""
    found = _OFFSET.match(message)
    return int(found.group(1), 0) if found else None
