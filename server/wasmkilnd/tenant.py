"""What serves the callers of one namespace."""

from __future__ import annotations

from dataclasses import dataclass, field

from wasmkilnd.compile_service import CompileService
from wasmkilnd.module_service import ModuleService
from wasmkilnd.pin_service import PinService
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.uses import Tally


@dataclass(frozen=True, slots=True)
class Tenant:
    """The services of one namespace: nothing of another's is reachable from here."""

    namespace: str
    service: CompileService
    modules: ModuleService
    quarantine: Quarantine
    pins: PinService
    tally: Tally = field(default_factory=Tally)
    """Counts how often each artifact is served."""
