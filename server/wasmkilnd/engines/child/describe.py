"""Find out what an engine can do on this machine, by trying, and whether it works.

There is no table of capabilities: for each target, CPU level, setting value and proposal, the
engine compiles or validates a tiny module; where a setting chooses the compiler, the code has to
load and run as well. Values of settings are tried for this machine, and for the portable target.
Engines abort the whole process for what they lack, so attempts are made in processes of their own,
confined as a compile is. To fork one costs some milliseconds, to compile a tiny module 0.1: so one
process tries values until one ends it.

The self-test compiles a module of each kind with the default target, CPU level and settings. Then
another process loads the artifact as a host would, and calls its function, which has to return the
right sum.

Each module here is binary, in hexadecimal, made from the text above it. ``proposals.txt`` has one
for each proposal: an engine that validates it has the proposal.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from . import cpu, rows, section
from .engine import Engine
from .sandbox import Sandbox

CORE_PREAMBLE = b"\0asm\x01\0\0\0"

ADDERS = {
    # (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add)
    "core": "0061736d0100000001070160027f7f017f030201000707010361646400000a09010700200020016a0b",
    # (component (core module $m the module above) (core instance $i (instantiate $m))
    #   (func (export "add") (param "a" u32) (param "b" u32) (result u32)
    #     (canon lift (core func $i "add"))))
    "component": "0061736d0d00010001290061736d0100000001070160027f7f017f03020100070701036164640000"
    "0a09010700200020016a0b020401000000070b01400201617901627900790609010000010003616464080601000000"
    "00000b09010003616464010000",
}

_PROPOSALS = dict(rows("proposals.txt"))

# A target, a CPU level, and settings.
_Where = tuple[str, str, dict[str, str]]
# A step, and the way in which it is taken.
_Try = tuple[_Where, Callable[[Any], bytes]]


def describe(engine: Engine, sandbox: Sandbox) -> dict[str, Any]:
    """Return the engine's capabilities as JSON-ready data; ``broken`` says why it does not work."""
    output, status = sandbox.attempt(lambda: [json.dumps(engine.describe()).encode()])
    if status:
        raise RuntimeError("the engine could not compile an empty module")
    said = json.loads(output)
    trials = _Trials(engine, sandbox, said["host_triple"], said["candidate_targets"])
    chooses = said["compiler_setting"]
    tried = trials.settings(trials.host, cpu.NATIVE, said["candidate_settings"], chooses)
    # Not a compiler that there is no choice of.
    settings = [each for each in tried if each["name"] != chooses or len(each["allowed"]) > 1]

    names = {each["name"] for each in settings}

    def own(triple: str) -> list[dict[str, Any]]:
        if triple != cpu.PORTABLE:
            return []
        tried = trials.settings(triple, cpu.BASELINE, said["candidate_settings"], chooses)
        return [each for each in tried if each["name"] in names and each not in settings]

    return {
        **said,
        "broken": next(filter(None, map(trials.broken, said["kinds"])), ""),
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "targets": [
            {
                "triple": triple,
                "cpus": levels,
                "host": triple == trials.host,
                "settings": own(triple),
            }
            for triple, levels in trials.levels.items()
            if levels
        ],
        "settings": settings,
        "wasm_features": trials.proposals() + ["component-model"] * ("component" in said["kinds"]),
        "compared": [
            found
            for target in {trials.host: None, cpu.PORTABLE: None}
            if (found := trials.compared(target, settings, said["candidate_settings"]))
        ],
    }


class _Trials:
    """Attempts with one engine.

    - ``levels``: of each target the CPU levels that the engine compiles for, the default first.
    """

    def __init__(self, engine: Engine, sandbox: Sandbox, host: str, targets: list[str]) -> None:
        self._engine = engine
        self._sandbox = sandbox
        self.host = host
        self.levels = {triple: self._levels(triple) for triple in targets}

    def broken(self, kind: str) -> str:
        """Return why the engine does not compile and run a module of a kind; empty if it does."""
        if not (levels := self.levels[self.host]):
            return "it does not compile for this machine"
        value, why = self._run((self.host, levels[0], {}), kind)
        return why or ("" if value == b"5" else f"its code returned {value.decode()} for 2 + 3")

    def _levels(self, triple: str) -> list[str]:
        architecture, is_host = triple.partition("-")[0], triple == self.host
        default = cpu.default_level(architecture, is_host, cpu.host_features())
        offered = cpu.offered_levels(architecture, is_host)
        made = iter(self._artifacts([(triple, level, {}) for level in offered]))
        levels = [level for level in offered if next(made)]
        return sorted(levels, key=lambda level: level != default)

    def settings(
        self, target: str, level: str, candidates: dict[str, Any], chooses: str
    ) -> list[dict[str, Any]]:
        """Find the values of settings that the engine takes for a target, and its defaults.

        Leave out a setting whose default is no candidate. The one that ``chooses`` the compiler has
        the values whose code runs here.
        """
        changes = [change for _, values in candidates.values() for change in values.values()]
        codes = iter(self._artifacts([(target, level, change) for change in ({}, *changes)]))
        by_default, found = next(codes), []
        for name, (text, values) in candidates.items():
            tried = {one: next(codes) for one in values}
            made = {one: code for one, code in tried.items() if code}
            default = next((one for one in made if made[one] == by_default), None)
            allowed = [
                one
                for one in made
                if name != chooses
                or one == default
                or self._run((target, level, values[one]), "core")[0] == b"5"
            ]
            if default and default.isdecimal():
                # A number. Engines take all between two that they take.
                allowed.append(f"{allowed[0]}..{allowed[-1]}")
            if default is not None:
                about = {"name": name, "default": default, "allowed": allowed}
                found.append({**about, "description": text})
        return found

    def compared(
        self, target: str, settings: list[dict[str, Any]], candidates: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what engines compare when they load code for a target; empty if nothing is known.

        Each value of a setting is tried beside the defaults: what it changes in the engine's
        section, whether its code runs by default, and whether it takes the default's code.
        """
        level = cpu.NATIVE if target == self.host else cpu.BASELINE
        adder = partial(self._compile, bytes.fromhex(ADDERS["core"]))
        base: _Where = target, level, {}
        code, _ = self._try(base, partial(adder, "core"))
        try:
            usual = section.parse(section.in_artifact(code))
        except section.Unreadable:
            return {}

        def runs(configured: Any, code: bytes) -> bool:
            try:
                called = self._engine.call(configured, bytearray(code), "core", "add", [2, 3])
            except BaseException:  # A panic derives from it.
                return False
            return bool(called == 5)

        def shown(configured: Any) -> bytes:
            own = adder("core", configured)
            shows = section.parse(section.in_artifact(own))
            names = usual.rest.keys() | shows.rest.keys()
            both = {each: (shows.rest.get(each, 0), usual.rest.get(each, 0)) for each in names}
            changed = {each: pair[0] for each, pair in both.items() if pair[0] != pair[1]}
            loads = runs(self._engine.configure(*base), own)
            said = {"changed": changed, "loads": loads, "takes": runs(configured, code)}
            said |= {"cpu": shows.cpu, "key": section.key_of(own)}
            return json.dumps(said).encode()

        tries: list[_Where] = [(target, each, {}) for each in self.levels[target]]
        names = {each["name"] for each in settings}
        tries += [
            (target, level, change)
            for name, (_, values) in candidates.items()
            for change in values.values()
            if name in names
        ]
        shown_by = [json.loads(line or "{}") for line in self._each([(x, shown) for x in tries])]
        found = list(zip(tries, shown_by))  # noqa: B905 - CPython 3.9 has no strict
        samples = [
            {"settings": where[2], **{each: one[each] for each in ("changed", "loads", "takes")}}
            for where, one in found
            if one.get("changed")
        ]
        by_level = {where[1]: one for where, one in found if not where[2] and one}
        return {
            "target": target,
            "levels": {each: one["cpu"] for each, one in by_level.items()},
            "keys": {each: one["key"] for each, one in by_level.items()},
            "samples": samples,
            **usual._asdict(),
        }

    def proposals(self) -> list[str]:
        """Return those of whose modules the engine finds each valid."""

        def validate(body: str, configured: Any) -> bytes:
            wasm = CORE_PREAMBLE + bytes.fromhex(body)
            self._engine.validate(configured, bytearray(wasm), "core")
            return b"valid"

        native: _Where = self.host, cpu.NATIVE, {}
        found = self._each([(native, partial(validate, body)) for body in _PROPOSALS.values()])
        return list(itertools.compress(_PROPOSALS, found))

    def _artifacts(self, wheres: Sequence[_Where]) -> list[bytes]:
        """Compile an empty module in each way; return the digests of the artifacts."""

        def digest(configured: Any) -> bytes:
            code = self._compile(CORE_PREAMBLE, "core", configured)
            return hashlib.sha256(code).hexdigest().encode()

        return self._each([(where, digest) for where in wheres])

    def _each(self, tries: Sequence[_Try]) -> list[bytes]:
        """Take each step in its way; return what it returns, a line each, empty where it failed.

        One process takes one after the other. Where that ends it, another goes on behind.
        """
        found: list[bytes] = []

        def others() -> Iterator[bytes]:
            for where, step in tries[len(found) :]:
                said = self._taken(where, step)
                yield (said[1:] if said[:1] == b"+" else b"") + b"\n"

        while len(found) < len(tries):
            output, _ = self._sandbox.attempt(others)
            found += output.split(b"\n")[:-1]
            if len(found) < len(tries):
                found.append(b"")
        return found

    def _compile(self, wasm: bytes, kind: str, configured: Any) -> bytes:
        return bytes(self._engine.compile_module(configured, bytearray(wasm), kind).serialize())

    def _run(self, where: _Where, kind: str) -> tuple[bytes, str]:
        """Return what code that adds 2 and 3 returns, and why there is none."""
        artifact, why = self._try(where, partial(self._compile, bytes.fromhex(ADDERS[kind]), kind))

        def call_it(configured: Any) -> bytes:
            code = bytearray(artifact)
            return str(self._engine.call(configured, code, kind, "add", [2, 3])).encode()

        return (b"", why) if why else self._try(where, call_it)

    def _try(self, where: _Where, step: Callable[[Any], bytes]) -> tuple[bytes, str]:
        """Return what a step returns, and why it failed; one of both is empty."""
        output, status = self._sandbox.attempt(lambda: [self._taken(where, step)])
        if os.WIFSIGNALED(status):
            return b"", f"it was ended by {signal.Signals(os.WTERMSIG(status)).name}"
        if output[:1] == b"+" and not status:
            return output[1:], ""
        return b"", " ".join(output[1:500].decode(errors="replace").split()) or "it failed"

    def _taken(self, where: _Where, step: Callable[[Any], bytes]) -> bytes:
        """Take a step in this process; return "+" and what it returns, or "-" and why it failed."""
        try:
            return b"+" + step(self._engine.configure(*where))
        except BaseException as failure:  # A panic derives from BaseException.
            return f"-{type(failure).__name__}: {failure}".encode(errors="replace")
