"""Find out what an engine can do on this machine, by trying.

There is no table of capabilities: for each target, CPU level, setting value and proposal, the
engine compiles or validates a tiny module; where a setting chooses the compiler, the code has to
load and run as well. Engines abort the whole process for what they lack, so each attempt is made
in a process of its own, confined as a compile is; to fork one costs about a millisecond.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from . import cpu, features
from .engine import Engine, interpreter
from .isolation import limits
from .isolation.confinement import Confinement

_PROBE_SECONDS = 10
_PIPE_BYTES = 64 * 1024
_NULL = 0  # the worker's standard input, which is /dev/null


def describe(engine: Engine, confinement: Confinement) -> dict[str, Any]:
    """Return the engine's capabilities as JSON-ready data."""
    return _Trials(engine, confinement).capabilities()


class _Trials:
    """Attempts with one engine."""

    def __init__(self, engine: Engine, confinement: Confinement) -> None:
        self._engine = engine
        self._confinement = confinement
        self._host = ""

    def capabilities(self) -> dict[str, Any]:
        engine = json.loads(self._attempt(self._describe) or "{}")
        if not engine:
            raise RuntimeError("the engine could not compile an empty module")
        self._host = engine["host_triple"]
        by_default = self._artifact(self._host, cpu.NATIVE, {})
        settings = [
            {**setting, "description": engine["setting_descriptions"][name]}
            for name, values in engine["setting_values"].items()
            if (setting := self._setting(name, values, by_default))
        ]
        settings = [
            setting
            for setting in settings
            if setting["name"] != engine["compiler_setting"] or self._choice(setting)
        ]
        return {
            "name": engine["name"],
            "version": engine["version"],
            "core_version": engine["core_version"],
            "compiler": engine["compiler"],
            "interpreter": interpreter(),
            "host_triple": self._host,
            "host_cpu_features": engine["host_cpu_features"],
            "kinds": engine["kinds"],
            "targets": [
                target
                for triple in engine["candidate_targets"]
                if (target := self._target(triple, triple == self._host))
            ],
            "settings": settings,
            "wasm_features": [
                proposal
                for proposal in features.CORE_PROPOSALS
                if self._validates(features.core_module(proposal))
            ]
            + (["component-model"] if "component" in engine["kinds"] else []),
        }

    def _describe(self) -> bytes:
        return json.dumps(asdict(self._engine.describe())).encode()

    def _target(self, triple: str, is_host: bool) -> dict[str, Any] | None:
        architecture = triple.partition("-")[0]
        levels = [
            level
            for level in cpu.offered_levels(architecture, is_host)
            if self._artifact(triple, level, {})
        ]
        default = cpu.default_level(architecture, is_host, cpu.host_features())
        if default in levels:
            levels.sort(key=lambda level: level != default)
        return {"triple": triple, "cpus": levels, "host": is_host} if levels else None

    def _setting(self, name: str, values: list[str], by_default: bytes) -> dict[str, Any] | None:
        """Find the values that the engine takes, and which of them is its default."""
        artifacts = {
            value: self._artifact(self._host, cpu.NATIVE, {name: value}) for value in values
        }
        allowed = [value for value, artifact in artifacts.items() if artifact]
        default = next((value for value in allowed if artifacts[value] == by_default), None)
        if default is None:
            # Its default is not a candidate, or the setting changes nothing: do not offer it.
            return None
        return {"name": name, "default": default, "allowed": allowed}

    def _choice(self, setting: dict[str, Any]) -> bool:
        """Leave only the compilers whose code runs here; return whether there is a choice."""
        name, default = setting["name"], setting["default"]
        setting["allowed"] = [
            compiler
            for compiler in setting["allowed"]
            if compiler == default or self._runs({name: compiler})
        ]
        return len(setting["allowed"]) > 1

    def _runs(self, settings: dict[str, str]) -> bool:
        adder = features.ADDER
        artifact = self._artifact(self._host, cpu.NATIVE, settings, adder)

        def call_it() -> bytes:
            configured = self._engine.configure(self._host, cpu.NATIVE, settings)
            value = self._engine.call(configured, bytearray(artifact), "core", "add", [40, 2])
            return str(value).encode()

        return bool(artifact) and self._attempt(call_it) == b"42"

    def _artifact(
        self,
        triple: str,
        level: str,
        settings: dict[str, str],
        wasm: bytes = features.CORE_PREAMBLE,
    ) -> bytes:
        def compile_it() -> bytes:
            configured = self._engine.configure(triple, level, settings)
            module = self._engine.compile(configured, bytearray(wasm), "core")
            return bytes(self._engine.serialize(module))

        return self._attempt(compile_it)

    def _validates(self, wasm: bytes) -> bool:
        def validate_it() -> bytes:
            configured = self._engine.configure(self._host, cpu.NATIVE, {})
            self._engine.validate(configured, bytearray(wasm), "core")
            return b"valid"

        return self._attempt(validate_it) == b"valid"

    def _attempt(self, step: Callable[[], bytes]) -> bytes:
        """Return what ``step`` returns in a fork, or b"" if it fails in any way."""
        readable, writable = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            limits.die_with_parent(parent)
            self._run_and_exit(step, writable)
        os.close(writable)
        output = b""
        while piece := os.read(readable, _PIPE_BYTES):
            output += piece
        os.close(readable)
        _, status = os.waitpid(pid, 0)
        return output if status == 0 else b""

    def _run_and_exit(self, step: Callable[[], bytes], writable: int) -> None:
        try:
            # A refusal is expected here, so its message is discarded.
            os.dup2(_NULL, 2)
            signal.alarm(_PROBE_SECONDS)
            self._confinement.seal()
            output = step()
            while output:
                output = output[os.write(writable, output) :]
        except BaseException:  # A panic derives from BaseException.
            os._exit(1)
        os._exit(0)
