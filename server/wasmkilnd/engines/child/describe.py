"""Ask an engine what it really can do on this machine.

Nothing is looked up in a table: for each target, cpu level, setting value and
proposal the engine is made to compile or validate a tiny module. Engines abort
the whole process for what they do not have, so each question is asked in a
process of its own; forking one costs about a millisecond.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from . import confine, cpu, features
from .engine import Engine, interpreter

_PROBE_SECONDS = 10


def describe(engine: Engine) -> dict[str, Any]:
    """Answer the engine's capabilities as JSON-ready data."""
    said = json.loads(_in_a_child(lambda: json.dumps(asdict(engine.describe())).encode()) or "{}")
    if not said:
        raise RuntimeError("the engine could not compile an empty module")
    host = said["host_triple"]
    by_itself = _artifact(engine, host, cpu.NATIVE, {})
    settings = [
        {**setting, "description": said["setting_descriptions"][name]}
        for name, values in said["setting_values"].items()
        if (setting := _setting(engine, host, name, values, by_itself))
    ]
    return {
        "name": said["name"],
        "version": said["version"],
        "core_version": said["core_version"],
        "compiler": said["compiler"],
        "interpreter": interpreter(),
        "host_triple": host,
        "host_cpu_features": said["host_cpu_features"],
        "kinds": said["kinds"],
        "targets": [
            target
            for triple in said["candidate_targets"]
            if (target := _target(engine, triple, triple == host))
        ],
        "settings": settings,
        "wasm_features": [
            proposal
            for proposal in features.CORE_PROPOSALS
            if _validates(engine, host, features.core_module(proposal))
        ]
        + (["component-model"] if "component" in said["kinds"] else []),
    }


def _target(engine: Engine, triple: str, is_host: bool) -> dict[str, Any] | None:
    architecture = triple.partition("-")[0]
    levels = [
        level
        for level in cpu.offered_levels(architecture, is_host)
        if _artifact(engine, triple, level, {})
    ]
    default = cpu.default_level(architecture, is_host, cpu.host_features())
    if default in levels:
        levels.sort(key=lambda level: level != default)
    return {"triple": triple, "cpus": levels, "host": is_host} if levels else None


def _setting(
    engine: Engine, host: str, name: str, values: list[str], by_itself: bytes
) -> dict[str, Any] | None:
    """Find the values that the engine takes, and which of them is what it does by itself."""
    taken = {value: _artifact(engine, host, cpu.NATIVE, {name: value}) for value in values}
    allowed = [value for value, artifact in taken.items() if artifact]
    default = next((value for value in allowed if taken[value] == by_itself), None)
    if default is None:
        # Its default is none of the candidates, or it changes nothing: not worth offering.
        return None
    return {"name": name, "default": default, "allowed": allowed}


def _artifact(engine: Engine, triple: str, level: str, settings: dict[str, str]) -> bytes:
    def compile_it() -> bytes:
        configured = engine.configure(triple, level, settings)
        module = engine.compile(configured, bytearray(features.CORE_PREAMBLE), "core")
        return bytes(engine.serialize(module))

    return _in_a_child(compile_it)


def _validates(engine: Engine, host: str, wasm: bytes) -> bool:
    def validate_it() -> bytes:
        engine.validate(engine.configure(host, cpu.NATIVE, {}), bytearray(wasm), "core")
        return b"valid"

    return _in_a_child(validate_it) == b"valid"


def _in_a_child(question: Callable[[], bytes]) -> bytes:
    """Answer what ``question`` answers in a fork, or b"" if it fails in whatever way."""
    readable, writable = os.pipe()
    asking = os.getpid()
    pid = os.fork()
    if pid == 0:
        confine.die_with_parent(asking)
        _answer_and_exit(question, readable, writable)
    os.close(writable)
    with os.fdopen(readable, "rb") as answers:
        answer = answers.read()
    _, status = os.waitpid(pid, 0)
    return answer if status == 0 else b""


def _answer_and_exit(question: Callable[[], bytes], readable: int, writable: int) -> None:
    try:
        os.close(readable)
        # A refusal is an expected answer here: nobody wants its last words.
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        signal.alarm(_PROBE_SECONDS)
        with os.fdopen(writable, "wb") as answers:
            answers.write(question())
    except BaseException:  # A panic derives from BaseException.
        os._exit(1)
    os._exit(0)
