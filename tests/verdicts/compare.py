"""Compares the daemon's verdicts with each engine's own, module by module."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wasmkiln import AsyncClient, WasmkilnError

from tests.e2e.daemon import Daemon
from tests.e2e.in_engine import interpreter
from tests.e2e.programs import Installed

DIRECT = Path(__file__).with_name("direct.py")
_CALLS_AT_ONCE = 6
_BEGIN, _END = 300, 50
_OFFSET = re.compile(r"\bat offset (0x[0-9a-f]+|\d+)\b")


@dataclass(frozen=True)
class Direct:
    """What an engine itself says. None means that it ended without an answer."""

    valid: bool | None
    says: str
    compiles: bool | None
    compile_says: str


@dataclass(frozen=True)
class Answer:
    """What the daemon says: an empty ``reason`` is a success."""

    reason: str = ""
    message: str = ""
    offset: str = ""
    accepted_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdicts:
    """All that was said about one module, by engine."""

    name: str
    is_component: bool
    direct: Mapping[str, Direct]
    load: Mapping[str, Answer]
    compile: Mapping[str, Answer]

    def disagreements(self) -> Iterable[str]:
        """Describe where the daemon's verdict differs from the engine's own."""
        for engine in self.direct:
            for call, answer in (("Load", self.load[engine]), ("Compile", self.compile[engine])):
                if answer.reason == "MODULE_TOO_LARGE":
                    continue
                if answer.reason == "NOT_WASM" and not self.direct[engine].valid:
                    continue
                for what in self._wrong(engine, call, answer):
                    yield f"{self.name}: {call} by {engine}: {what}"

    def _wrong(self, engine: str, call: str, answer: Answer) -> Iterable[str]:
        said = self.direct[engine]
        reason = self._expected_reason(engine, call)
        if {answer.reason, reason} == {"ENGINE_LACKS_FEATURE", "MODULE_INVALID"} and any(
            map(_lacks, self.direct.values())
        ):
            return  # No engine here has it, if they say so themselves: cases.py knows of which.
        if answer.reason != reason:
            yield f"{answer.reason or 'OK'} instead of {reason or 'OK'}: {answer.message or said}"
            return
        if reason == "MODULE_INVALID":
            if self._has_no_kind(engine):
                said = next(one for other, one in self.direct.items() if other != engine)
            words = _own_words(said.says)
            # A long message is cut in its middle.
            if words[:_BEGIN] not in answer.message or words[-_END:] not in answer.message:
                yield f"{answer.message!r} does not hold the engine's words {words!r}"
            # The last one: names of the module come before it.
            offsets = _OFFSET.findall(said.says)
            if offsets and answer.offset != str(int(offsets[-1], 0)):
                yield f"offset {answer.offset!r} instead of {offsets[-1]}"
        if reason == "ENGINE_LACKS_FEATURE":
            wrongly = [other for other in answer.accepted_by if not self._accepts(other, engine)]
            forgotten = [
                other
                for other, direct in self.direct.items()
                if direct.compiles and other != engine and other not in answer.accepted_by
            ]
            if wrongly or forgotten:
                yield f"accepted by {answer.accepted_by}: wrong {wrongly}, forgotten {forgotten}"

    def _has_no_kind(self, engine: str) -> bool:
        """Whether the engine has no opinion, since it runs no components at all."""
        return self.is_component and _name(engine) == "wasmer"

    def _accepts(self, other: str, engine: str) -> bool:
        """Return whether the daemon may name ``other`` to a caller of ``engine``."""
        one, another = self.direct[engine], self.direct[other]
        if one.valid and _name(engine) == _name(other):
            # The engine validates what it does not compile; so its other version may too.
            return bool(another.compiles)
        return bool(another.valid)

    def _expected_reason(self, engine: str, call: str) -> str:
        said = self.direct[engine]
        if self._has_no_kind(engine):
            others = [
                self._expected_reason(other, call) for other in self.direct if other != engine
            ]
            only_invalid = set(others) == {"MODULE_INVALID"}
            return "MODULE_INVALID" if only_invalid else "ENGINE_LACKS_FEATURE"
        if said.valid is None:
            return "COMPILER_CRASHED"
        if not said.valid and self.is_component and "not supported" in said.says:
            return "ENGINE_LACKS_FEATURE"  # By its own words, for only compiling it tells.
        if not said.valid:
            valid = any(direct.valid for direct in self.direct.values())
            return "ENGINE_LACKS_FEATURE" if valid else "MODULE_INVALID"
        if call == "Load" or said.compiles:
            return ""
        return "COMPILER_CRASHED" if said.compiles is None else "ENGINE_LACKS_FEATURE"


def _lacks(said: Direct) -> bool:
    """Return whether an engine's words may be about a proposal that is not enabled."""
    words = r"not enabled|disabled|not active|required|requires?|proposal|support|multiple \w+"
    return bool(re.search(words, said.says))


def _name(engine_id: str) -> str:
    return engine_id.partition("-")[0]


def _own_words(words: str) -> str:
    """Return the engine's words without what it puts around them, on one line."""
    causes = words.removeprefix("Validation error: ").partition("Caused by:\n")
    return " ".join(re.split(r"^ +\d+: ", causes[2] or causes[0], flags=re.MULTILINE)[-1].split())


def ask_directly(store: Installed, engine_id: str, paths: Sequence[Path]) -> list[Direct]:
    """Return what the engine says of each file, in its own interpreter."""
    done = subprocess.run(
        [str(interpreter(store, engine_id)), str(DIRECT), _name(engine_id)],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        text=True,
        check=True,
    )
    return [Direct(**json.loads(line)) for line in done.stdout.splitlines()]


async def ask_daemon(
    address: str, engine_ids: Sequence[str], modules: Sequence[bytes]
) -> list[tuple[dict[str, Answer], dict[str, Answer]]]:
    """Return what Load and Compile say of each module by each engine, over one connection."""
    room = asyncio.Semaphore(_CALLS_AT_ONCE)
    async with AsyncClient(address, timeout_s=300) as client:

        async def ask(module: bytes) -> tuple[dict[str, Answer], dict[str, Answer]]:
            async with room:
                load = {e: await _answer(client.load(module, engine=e)) for e in engine_ids}
                made = {
                    e: await _answer(client.compile(module, engine=e, omit_artifact=True))
                    for e in engine_ids
                }
                return load, made

        return await asyncio.gather(*map(ask, modules))


async def _answer(call: object) -> Answer:
    try:
        await call  # type: ignore[misc]
    except WasmkilnError as refusal:
        return Answer(
            refusal.reason or refusal.code.name,
            refusal.message,
            refusal.metadata.get("offset", ""),
            tuple(filter(None, refusal.metadata.get("accepted_by", "").split(", "))),
        )
    return Answer()


def compare(store: Installed, daemon: Daemon, paths: Sequence[Path]) -> list[Verdicts]:
    """Ask the daemon and each engine about every file."""
    engine_ids = [engine.id for engine in store]
    modules = [path.read_bytes() for path in paths]
    direct = {engine: ask_directly(store, engine, paths) for engine in engine_ids}
    answers = asyncio.run(ask_daemon(daemon.address, engine_ids, modules))
    return [
        Verdicts(
            name=path.name,
            is_component=module[6:8] == b"\1\0",
            direct={engine: direct[engine][index] for engine in engine_ids},
            load=answers[index][0],
            compile=answers[index][1],
        )
        for index, (path, module) in enumerate(zip(paths, modules, strict=True))
    ]


def table(verdicts: Sequence[Verdicts]) -> str:
    """Return how often each engine and call gave each answer."""
    lines = []
    for engine in verdicts[0].direct:
        for call in ("load", "compile"):
            counts = Counter(getattr(one, call)[engine].reason or "OK" for one in verdicts)
            said = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
            lines.append(f"{engine:18} {call:8} {said}")
    return "\n".join(lines)
