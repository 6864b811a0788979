"""Ask an engine what it really can do on this machine.

Nothing is looked up in a table: for each target, cpu level, setting value and
proposal the engine is made to compile or validate a tiny module. Engines abort
the whole process for what they do not have, so each question is asked in a
process of its own, confined as a compile is; forking one costs about a millisecond.
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
    return _Interview(engine, confinement).answers()


class _Interview:
    """Questions to one engine."""

    def __init__(self, engine: Engine, confinement: Confinement) -> None:
        self._engine = engine
        self._confinement = confinement
        self._host = ""

    def answers(self) -> dict[str, Any]:
        said = json.loads(self._ask(self._describe) or "{}")
        if not said:
            raise RuntimeError("the engine could not compile an empty module")
        self._host = said["host_triple"]
        by_itself = self._artifact(self._host, cpu.NATIVE, {})
        settings = [
            {**setting, "description": said["setting_descriptions"][name]}
            for name, values in said["setting_values"].items()
            if (setting := self._setting(name, values, by_itself))
        ]
        return {
            "name": said["name"],
            "version": said["version"],
            "core_version": said["core_version"],
            "compiler": said["compiler"],
            "interpreter": interpreter(),
            "host_triple": self._host,
            "host_cpu_features": said["host_cpu_features"],
            "kinds": said["kinds"],
            "targets": [
                target
                for triple in said["candidate_targets"]
                if (target := self._target(triple, triple == self._host))
            ],
            "settings": settings,
            "wasm_features": [
                proposal
                for proposal in features.CORE_PROPOSALS
                if self._validates(features.core_module(proposal))
            ]
            + (["component-model"] if "component" in said["kinds"] else []),
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

    def _setting(self, name: str, values: list[str], by_itself: bytes) -> dict[str, Any] | None:
        """Find the values that the engine takes, and which of them is what it does by itself."""
        taken = {value: self._artifact(self._host, cpu.NATIVE, {name: value}) for value in values}
        allowed = [value for value, artifact in taken.items() if artifact]
        default = next((value for value in allowed if taken[value] == by_itself), None)
        if default is None:
            # Its default is none of the candidates, or it changes nothing: not worth offering.
            return None
        return {"name": name, "default": default, "allowed": allowed}

    def _artifact(self, triple: str, level: str, settings: dict[str, str]) -> bytes:
        def compile_it() -> bytes:
            configured = self._engine.configure(triple, level, settings)
            module = self._engine.compile(configured, bytearray(features.CORE_PREAMBLE), "core")
            return bytes(self._engine.serialize(module))

        return self._ask(compile_it)

    def _validates(self, wasm: bytes) -> bool:
        def validate_it() -> bytes:
            configured = self._engine.configure(self._host, cpu.NATIVE, {})
            self._engine.validate(configured, bytearray(wasm), "core")
            return b"valid"

        return self._ask(validate_it) == b"valid"

    def _ask(self, question: Callable[[], bytes]) -> bytes:
        """Return what ``question`` answers in a fork, or b"" if it fails in whatever way."""
        readable, writable = os.pipe()
        asking = os.getpid()
        pid = os.fork()
        if pid == 0:
            limits.die_with_parent(asking)
            self._answer_and_exit(question, writable)
        os.close(writable)
        answer = b""
        while piece := os.read(readable, _PIPE_BYTES):
            answer += piece
        os.close(readable)
        _, status = os.waitpid(pid, 0)
        return answer if status == 0 else b""

    def _answer_and_exit(self, question: Callable[[], bytes], writable: int) -> None:
        try:
            # A refusal is an expected answer here: nobody wants its last words.
            os.dup2(_NULL, 2)
            signal.alarm(_PROBE_SECONDS)
            self._confinement.seal()
            answer = question()
            while answer:
                answer = answer[os.write(writable, answer) :]
        except BaseException:  # A panic derives from BaseException.
            os._exit(1)
        os._exit(0)
