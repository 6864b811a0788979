"""Find out what an engine can do on this machine, by trying.

There is no table of capabilities: for each target, CPU level, setting value and proposal, the
engine compiles or validates a tiny module; where a setting chooses the compiler, the code has to
load and run as well. Engines abort the whole process for what they lack, so each attempt is made
in a process of its own, confined as a compile is; to fork one costs about a millisecond.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from typing import Any

from . import cpu
from .engine import Engine
from .features import ADDER, CORE_PREAMBLE, CORE_PROPOSALS
from .sandbox import Sandbox

# A target, a CPU level, and settings.
_Where = tuple[str, str, dict[str, str]]


def describe(engine: Engine, sandbox: Sandbox) -> dict[str, Any]:
    """Return the engine's capabilities as JSON-ready data."""
    output, status = sandbox.attempt(lambda: json.dumps(engine.describe()).encode())
    if status:
        raise RuntimeError("the engine could not compile an empty module")
    said = json.loads(output)
    trials = _Trials(engine, sandbox, said["host_triple"])
    return {
        **said,
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "targets": [
            {"triple": triple, "cpus": levels, "host": triple == trials.host}
            for triple in said["candidate_targets"]
            if (levels := trials.levels(triple))
        ],
        "settings": [
            {**setting, "description": said["setting_descriptions"][name]}
            for name, values in said["setting_values"].items()
            if (setting := trials.setting(name, values, name == said["compiler_setting"]))
        ],
        "wasm_features": [name for name, body in CORE_PROPOSALS.items() if trials.validates(body)]
        + ["component-model"] * ("component" in said["kinds"]),
    }


class _Trials:
    """Attempts with one engine."""

    def __init__(self, engine: Engine, sandbox: Sandbox, host: str) -> None:
        self._engine = engine
        self._sandbox = sandbox
        self.host = host
        self._by_default = self._artifact((host, cpu.NATIVE, {}))

    def levels(self, triple: str) -> list[str]:
        """Return the CPU levels that the engine compiles for, the default first."""
        architecture, is_host = triple.partition("-")[0], triple == self.host
        default = cpu.default_level(architecture, is_host, cpu.host_features())
        offered = cpu.offered_levels(architecture, is_host)
        levels = [level for level in offered if self._artifact((triple, level, {}))]
        return sorted(levels, key=lambda level: level != default)

    def setting(self, name: str, candidates: list[str], chooses: bool) -> dict[str, Any]:
        """Find the values that the engine takes, and which of them is its default.

        Empty if its default is no candidate, and for a compiler that there is no choice of: a
        setting that ``chooses`` it has the values whose code runs here.
        """
        tried = {one: self._artifact((self.host, cpu.NATIVE, {name: one})) for one in candidates}
        made = {one: artifact for one, artifact in tried.items() if artifact}
        default = next((one for one in made if made[one] == self._by_default), None)
        allowed = [one for one in made if not chooses or one == default or self._runs({name: one})]
        if default is None or (chooses and len(allowed) == 1):
            return {}
        return {"name": name, "default": default, "allowed": allowed}

    def _runs(self, settings: dict[str, str]) -> bool:
        where = (self.host, cpu.NATIVE, settings)
        artifact = bytearray(self._artifact(where, ADDER))

        def call_it(configured: Any) -> bytes:
            return str(self._engine.call(configured, artifact, "core", "add", [40, 2])).encode()

        return bool(artifact) and self._try(where, call_it) == b"42"

    def validates(self, body: str) -> bool:
        """Return whether the engine finds a core module valid."""

        def validate_it(configured: Any) -> bytes:
            wasm = CORE_PREAMBLE + bytes.fromhex(body)
            self._engine.validate(configured, bytearray(wasm), "core")
            return b"valid"

        return self._try((self.host, cpu.NATIVE, {}), validate_it) == b"valid"

    def _artifact(self, where: _Where, wasm: bytes = CORE_PREAMBLE) -> bytes:
        def compile_it(configured: Any) -> bytes:
            module = self._engine.compile(configured, bytearray(wasm), "core")
            return bytes(self._engine.serialize(module))

        return self._try(where, compile_it)

    def _try(self, where: _Where, step: Callable[[Any], bytes]) -> bytes:
        output, status = self._sandbox.attempt(lambda: step(self._engine.configure(*where)))
        return b"" if status else output
