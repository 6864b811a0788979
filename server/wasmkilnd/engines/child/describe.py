"""Find out what an engine can do on this machine, by trying.

There is no table of capabilities: for each target, CPU level, setting value and proposal, the
engine compiles or validates a tiny module; where a setting chooses the compiler, the code has to
load and run as well. Engines abort the whole process for what they lack, so each attempt is made
in a process of its own, confined as a compile is; to fork one costs about a millisecond.
"""

from __future__ import annotations

import json
import os
import platform
import signal
from collections.abc import Callable
from typing import Any

from . import cpu
from .engine import Engine
from .features import ADDER, CORE_PREAMBLE, CORE_PROPOSALS
from .sandbox import Sandbox, die_with_parent

_PROBE_SECONDS = 10
_PIPE_BYTES = 64 * 1024
_NULL = 0  # the worker's standard input, which is /dev/null


def describe(engine: Engine, sandbox: Sandbox) -> dict[str, Any]:
    """Return the engine's capabilities as JSON-ready data."""
    said = json.loads(_attempt(sandbox, lambda: json.dumps(engine.describe()).encode()) or "{}")
    if not said:
        raise RuntimeError("the engine could not compile an empty module")
    host = said["host_triple"]
    trials = _Trials(engine, sandbox, host)
    proposals = [proposal for proposal, body in CORE_PROPOSALS.items() if trials.validates(body)]
    return {
        **said,
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "targets": [
            {"triple": triple, "cpus": levels, "host": triple == host}
            for triple in said["candidate_targets"]
            if (levels := trials.levels(triple))
        ],
        "settings": [
            {
                "name": name,
                "default": allowed[0],
                "allowed": [value for value in values if value in allowed],
                "description": said["setting_descriptions"][name],
            }
            for name, values in said["setting_values"].items()
            if (allowed := trials.values(name, values, chooses=name == said["compiler_setting"]))
        ],
        "wasm_features": proposals + ["component-model"] * ("component" in said["kinds"]),
    }


class _Trials:
    """Attempts with one engine."""

    def __init__(self, engine: Engine, sandbox: Sandbox, host: str) -> None:
        self._engine = engine
        self._sandbox = sandbox
        self._host = host
        self._by_default = self._artifact(host, cpu.NATIVE, {})

    def levels(self, triple: str) -> list[str]:
        """Return the CPU levels that the engine compiles for, the default first."""
        architecture, is_host = triple.partition("-")[0], triple == self._host
        default = cpu.default_level(architecture, is_host, cpu.host_features())
        offered = cpu.offered_levels(architecture, is_host)
        levels = [level for level in offered if self._artifact(triple, level, {})]
        return sorted(levels, key=lambda level: level != default)

    def values(self, name: str, candidates: list[str], *, chooses: bool) -> list[str]:
        """Return the values that the engine takes for a setting, its default first.

        Empty if its default is not a candidate, and for a compiler that there is no choice of. A
        setting that ``chooses`` it has the values whose code runs here.
        """
        made = {
            value: artifact
            for value in candidates
            if (artifact := self._artifact(self._host, cpu.NATIVE, {name: value}))
        }
        defaults = [value for value, artifact in made.items() if artifact == self._by_default][:1]
        others = [
            value
            for value in made
            if value not in defaults and (not chooses or self._runs({name: value}))
        ]
        return defaults + others if defaults and (others or not chooses) else []

    def _runs(self, settings: dict[str, str]) -> bool:
        artifact = self._artifact(self._host, cpu.NATIVE, settings, ADDER)

        def call_it(configured: Any) -> bytes:
            value = self._engine.call(configured, bytearray(artifact), "core", "add", [40, 2])
            return str(value).encode()

        return bool(artifact) and self._try(call_it, self._host, cpu.NATIVE, settings) == b"42"

    def _artifact(
        self, triple: str, level: str, settings: dict[str, str], wasm: bytes = CORE_PREAMBLE
    ) -> bytes:
        def compile_it(configured: Any) -> bytes:
            module = self._engine.compile(configured, bytearray(wasm), "core")
            return bytes(self._engine.serialize(module))

        return self._try(compile_it, triple, level, settings)

    def validates(self, body: str) -> bool:
        """Return whether the engine finds a core module valid."""

        def validate_it(configured: Any) -> bytes:
            wasm = CORE_PREAMBLE + bytes.fromhex(body)
            self._engine.validate(configured, bytearray(wasm), "core")
            return b"valid"

        return self._try(validate_it, self._host, cpu.NATIVE, {}) == b"valid"

    def _try(
        self, step: Callable[[Any], bytes], triple: str, level: str, settings: dict[str, str]
    ) -> bytes:
        configure = self._engine.configure
        return _attempt(self._sandbox, lambda: step(configure(triple, level, settings)))


def _attempt(sandbox: Sandbox, step: Callable[[], bytes]) -> bytes:
    """Return what ``step`` returns in a fork, or b"" if it fails in any way."""
    readable, writable = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent(parent)
            os.dup2(_NULL, 2)  # A refusal is expected here, so its message is discarded.
            signal.alarm(_PROBE_SECONDS)
            sandbox.seal()
            output = step()
            while output:
                output = output[os.write(writable, output) :]
            os._exit(0)
        finally:  # A panic derives from BaseException.
            os._exit(1)
    os.close(writable)
    output = b""
    while piece := os.read(readable, _PIPE_BYTES):
        output += piece
    os.close(readable)
    _, status = os.waitpid(pid, 0)
    return output if status == 0 else b""
