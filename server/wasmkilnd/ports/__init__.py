"""What the request path needs from the outside, and what each port promises.

A port is a Protocol: the services (``compile_service``, ``module_service``, ``quarantine``) know
ports alone, so tests put doubles in their place, and each room implements its ports without
knowing the services.

| file | ports | implemented by |
|---|---|---|
| ``claims`` | ``Fleet``: who compiles; ``Claim``: one daemon's claim to compile | ``cache.fleet`` |
| ``engines`` | ``Engines``, ``EngineWorker``, ``CompiledCode``, ``Refused`` | ``engines`` |
| ``access`` | ``Guard``: who calls, and what they may do | ``access`` |
| ``audit`` | ``Auditor``: writes down who did what | ``telemetry.audit`` |
| ``recorder`` | ``Recorder``: takes note of what happens | ``telemetry.metrics`` |

Three promises hold for every port that does not say otherwise:

- It is safe for concurrent use by the tasks of one event loop, and for no other thread.
- It raises only what its docstrings name. A ``WasmkilnError`` is told to the caller; a
  ``TierUnavailable`` says that a tier could not answer, and never stands for a miss.
- A call that is cancelled leaves the port usable.

One suite tests every implementation of ``Tier`` (``tests/contract/test_tier.py``); the doubles
that stand in for ports in other tests are in ``tests/doubles``. A new method of a port needs its
promise here, and a test of that promise.
"""

from wasmkilnd.ports.access import Guard
from wasmkilnd.ports.audit import AuditEvent, AuditLine, Auditor
from wasmkilnd.ports.claims import Claim, Fleet
from wasmkilnd.ports.engines import CompiledCode, Engines, EngineWorker, Refused
from wasmkilnd.ports.recorder import Recorder
from wasmkilnd.ports.tracing import CallTrace, Tracing

__all__ = [
    "AuditEvent",
    "AuditLine",
    "Auditor",
    "CallTrace",
    "Claim",
    "CompiledCode",
    "EngineWorker",
    "Engines",
    "Fleet",
    "Guard",
    "Recorder",
    "Refused",
    "Tracing",
]
