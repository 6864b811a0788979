"""What serves the callers of one namespace."""

from __future__ import annotations

from dataclasses import dataclass

from wasmkilnd.compile_service import CompileService
from wasmkilnd.module_service import ModuleService
from wasmkilnd.pins import Pins
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.usage import Tally


@dataclass(frozen=True, slots=True)
class Tenant:
    """The services of one namespace: nothing of another's is reachable from here."""

    namespace: str
    service: CompileService
    modules: ModuleService
    quarantine: Quarantine
    pins: Pins
    tally: Tally
    """Counts how often each artifact is served."""
