"""Whom an engine's refusal is blamed on: the module, or the engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from wasmkilnd import errors
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.engines.job import JobReport
from wasmkilnd.engines.names import NameChoices
from wasmkilnd.engines.pool import Job, Ready, Unless
from wasmkilnd.engines.registry import EngineRegistry, ServedEngine
from wasmkilnd.engines.verdict import CompiledCode
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import (
    EngineCapabilities,
    EngineIdentity,
    Kind,
    Limits,
    Module,
    Reloadable,
    SettingInfo,
    TargetInfo,
)
from wasmkilnd.waits.flights import Waiter, Waiters

from tests.doubles.notes import Notes
from tests.doubles.until import until
from tests.frames import pack

HOST = "x86_64-unknown-linux-gnu"
LIMITS = Limits(1000, 1000, 30, 60, 8192, 10, 10_000)
MODULE = Module("a" * 64, Kind.CORE_MODULE, b"\0asm\x01\0\0\0")
COMPONENT = Module("b" * 64, Kind.COMPONENT, b"\0asm\x0d\0\x01\0")

VALID = {"outcome": "ok"}
INVALID = {"outcome": "invalid", "message": "bad (at offset 9)", "offset": 9}
TOO_LARGE = {"outcome": "too_large", "size_bytes": 5000}

Said = Mapping[str, Any] | WasmkilnError | str


class Pool:
    """Answers each order as it is told, and counts them."""

    def __init__(self, validate: Said, compile_: Said) -> None:
        self.says: dict[str, Said] = {"validate": validate, "compile": compile_}
        self.orders: Counter[str] = Counter()
        self.limits: list[float] = []
        self.retries: list[int] = []
        self.asked: list[Waiters] = []
        self.free = asyncio.Event()
        self.free.set()

    async def run(
        self, job: Job, *, ready: Ready | None = None, unless: Unless | None = None
    ) -> JobReport:
        assert not ready or await ready(0.0)
        op = job.order.order["op"]
        self.orders[op] += 1
        self.limits.append(job.order.limits.compile_cpu_s)
        self.retries.append(job.order.limits.compile_memory_retry_bytes)
        self.asked.append(job.waiters)
        await asyncio.sleep(0.001)
        await self.free.wait()
        said = self.says[op]
        if isinstance(said, WasmkilnError):
            raise said
        if isinstance(said, str):  # Killed at its limit.
            return JobReport(sent={Type.CONFIGURED}, timed_out=True, signal=9)
        report = JobReport(sent={Type.CONFIGURED}, result=dict(said))
        report.memory_bytes = job.order.limits.compile_memory_bytes
        if op == "compile" and said is VALID:
            report.packed = pack(b"code")
        return report


class Rig:
    """Engines by id, each with what it says to validate and to compile."""

    def __init__(self, engines: Mapping[str, tuple[Said, Said]]) -> None:
        self.pools = {engine_id: Pool(*says) for engine_id, says in engines.items()}
        self.metrics = Notes()
        served = [
            ServedEngine(capabilities(engine_id), pool)  # type: ignore[arg-type]
            for engine_id, pool in self.pools.items()
        ]
        self.limits = Reloadable(LIMITS)
        self.registry = EngineRegistry(self.limits)
        self.registry.serve(served, NameChoices())

    async def load(self, engine: str, module: Module = MODULE) -> None:
        await self.registry.validate(engine, module, Waiters.of(Waiter()), nullcontext())

    async def compile(
        self,
        engine: str,
        module: Module = MODULE,
        settings: Mapping[str, str] | None = None,
        waiters: Waiters | None = None,
    ) -> CompiledCode:
        spec = self.registry.spec(engine, "", "", settings or {})
        waiters = waiters or Waiters.of(Waiter())
        code = await self.registry.compile(
            spec, module, waiters, self.metrics, ready=at_once, unless=never
        )
        assert code
        if isinstance(code, CompiledCode):
            return code
        raise await code()


async def at_once(queued_s: float) -> bool:
    return True


async def never() -> None:
    await asyncio.Event().wait()


# Which proposals engines of a name have.
FEATURES = {"old": (), "new": ("simd", "exception-handling")}


def capabilities(engine_id: str) -> EngineCapabilities:
    name, _, version = engine_id.partition("-")
    return EngineCapabilities(
        identity=EngineIdentity(name, version, version, "c"),
        interpreter="CPython 3",
        host_triple=HOST,
        host_cpu_features=(),
        targets=(TargetInfo(HOST, ("native",), True),),
        settings=(SettingInfo("wasm_simd", "true", ("true", "false"), ""),),
        wasm_features=FEATURES[name],
        kinds=frozenset({Kind.CORE_MODULE} | ({Kind.COMPONENT} if name == "new" else set())),
    )


async def refused(call: Any) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as failure:
        await call
    return failure.value


def invalid(words: str) -> Said:
    return {"outcome": "invalid", "message": f"{words} (at offset 11)", "offset": 11}


NO_SIMD = invalid("SIMD support is not enabled")
# What the engines say, of which the first is asked, and about what; what a caller is told.
# What real engines say of modules is in tests/e2e/test_verdicts.py.
VERDICTS: dict[str, tuple[dict[str, tuple[Said, Said]], Module, dict[str, str]]] = {
    "a second opinion on a component that takes too long goes by its kind": (
        {"old-1": (VALID, VALID), "new-1": ("killed at its limit", VALID)},
        COMPONENT,
        {"accepted_by": "new-1"},
    ),
    "an artifact that is too large is no word against the module": (
        {"old-1": (INVALID, INVALID), "new-1": (VALID, TOO_LARGE)},
        MODULE,
        {"accepted_by": "new-1"},
    ),
    "one that has the feature and finds a mistake has read further": (
        {"old-1": (NO_SIMD, NO_SIMD), "new-1": (INVALID, INVALID)},
        MODULE,
        {"engine": "old-1"},
    ),
    "one without the feature that finds something else wrong overrules nobody": (
        {"old-2": (INVALID, INVALID), "old-1": (NO_SIMD, NO_SIMD)},
        MODULE,
        {"accepted_by": "", "feature": "simd"},
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
async def test_whom_a_refusal_is_blamed_on(case: str) -> None:
    engines, module, told = VERDICTS[case]
    failure = await refused(Rig(engines).load(next(iter(engines)), module))
    lacking = "accepted_by" in told
    assert failure.reason is (Reason.ENGINE_LACKS_FEATURE if lacking else Reason.MODULE_INVALID)
    assert told.items() <= failure.metadata.items()
    assert ("feature" in failure.metadata) is ("feature" in told)


async def test_settings_that_switch_a_feature_off_hide_no_mistake() -> None:
    rig = Rig({"new-1": (INVALID, NO_SIMD)})
    failure = await refused(rig.compile("new-1", settings={"wasm_simd": "false"}))
    assert failure.reason is Reason.MODULE_INVALID


# --- What a refused module costs the other engines ----------------------------------------


async def test_a_second_opinion_is_a_job_of_the_same_callers_with_little_time() -> None:
    rig = Rig({"old-1": (INVALID, INVALID), "new-1": ("killed at its limit", VALID)})
    rig.limits.current = replace(LIMITS, compile_memory_retry_bytes=9000)
    waiters = Waiters.of(Waiter("a"))
    failure = await refused(rig.compile("old-1", waiters=waiters))
    assert failure.reason is Reason.MODULE_INVALID
    assert rig.pools["new-1"].orders == {"validate": 1}
    assert rig.pools["new-1"].asked == [waiters]
    assert rig.pools["new-1"].limits == [2.0]
    await refused(rig.load("new-1"))  # Who asks for the engine itself is given all its time.
    assert rig.pools["new-1"].limits == [2.0, 60]
    # Nor is it tried again alone, for which all engines stop.
    assert rig.pools["new-1"].retries == [0, 9000]


async def test_nobody_else_is_asked_about_what_everybody_has_left() -> None:
    rig = Rig({"old-1": (INVALID, INVALID), "new-1": (VALID, VALID)})
    rig.pools["old-1"].free.clear()
    drops, waiters = list[str](), Waiters.of(Waiter("a"))
    waiters.drop, waiters.kept = lambda: drops.append("dropped"), True
    flight = asyncio.create_task(rig.compile("old-1", waiters=waiters))
    await until(lambda: rig.pools["old-1"].orders)
    waiters.leave(Waiter("a"))
    assert not drops
    rig.pools["old-1"].free.set()
    assert (await refused(flight)).reason is Reason.SERVER_DRAINING
    assert drops  # Before anybody could join what tells nothing.
    assert not rig.pools["new-1"].orders


async def test_no_verdict_is_made_of_a_full_queue() -> None:
    """Without the other engine's word, a module that is ahead would be called invalid."""
    rig = Rig(
        {"old-1": (INVALID, INVALID), "new-1": (errors.compile_queue_full("new-1", 10, 1.5), VALID)}
    )
    failure = await refused(rig.load("old-1"))
    assert failure.reason is Reason.COMPILE_QUEUE_FULL
    assert failure.retry_after_s == 1.5
    rig.pools["new-1"].says["validate"] = VALID
    assert (await refused(rig.load("old-1"))).reason is Reason.ENGINE_LACKS_FEATURE


async def test_only_what_broke_without_the_files_is_a_removal() -> None:
    rig = Rig({"old-1": (VALID, VALID), "new-1": (VALID, VALID)})
    crashed = errors.compiler_crashed("old-1", "ended with exit code 70", "")
    for failure in (crashed, errors.module_invalid("old-1", "bad", None)):
        rig.pools["old-1"].says["compile"] = failure
        rig.registry._known["old-1"].is_installed = lambda: True
        assert (await refused(rig.compile("old-1"))).reason is failure.reason
        rig.registry._known["old-1"].is_installed = lambda: False
        told = await refused(rig.compile("old-1"))
        removed = failure is crashed
        assert told.reason is (Reason.ENGINE_REMOVED if removed else failure.reason)
        assert told.metadata.get("engines") == ("new-1" if removed else None)


# --- The portable target ------------------------------------------------------------------


def on(host: str, *native: SettingInfo) -> ServedEngine:
    """An engine on a machine of its own, with what it has for every machine."""
    threads = SettingInfo("wasm_threads", "true", ("true", "false"), "")
    strategy = SettingInfo("strategy", "cranelift", ("cranelift", "winch"), "")
    own = (
        SettingInfo("wasm_threads", "false", ("false",), ""),
        SettingInfo("strategy", "cranelift", ("cranelift",), ""),
    )
    known = EngineCapabilities(
        identity=EngineIdentity("wasmtime", "1", "1", "cranelift"),
        interpreter=f"CPython on {host}",
        host_triple=host,
        host_cpu_features=(host,),
        targets=(
            TargetInfo(host, ("native",), True),
            TargetInfo("pulley64", ("baseline",), False, own),
        ),
        settings=(threads, strategy, *native),
        wasm_features=(),
        kinds=frozenset({Kind.CORE_MODULE}),
    )
    pool: Any = Pool(VALID, {"outcome": "unsupported", "message": "threads must be enabled"})
    return ServedEngine(known, pool)


def test_an_artifact_for_every_machine_has_one_fingerprint() -> None:
    one, other = on(HOST), on("aarch64-unknown-linux-gnu")
    portable, there = one.spec("pulley64", "", {}), other.spec("pulley64", "", {})
    assert portable.fingerprint == there.fingerprint
    assert one.spec("", "", {}).fingerprint != other.spec("", "", {}).fingerprint
    assert (portable.settings["wasm_threads"], portable.changed_settings) == ("false", {})
    assert one.spec("pulley64", "", {"wasm_threads": "false"}) == portable
    assert one.spec("", "", {}).settings["wasm_threads"] == "true"


def test_a_target_s_own_values_are_checked() -> None:
    engine = on(HOST)
    for name, value in (("wasm_threads", "true"), ("strategy", "winch")):
        assert engine.spec("", "", {name: value})
        with pytest.raises(WasmkilnError, match=f"for setting {name} for target pulley64") as no:
            engine.spec("pulley64", "", {name: value})
        assert no.value.reason is Reason.SETTING_UNKNOWN
    assert engine.fast(engine.spec("", "", {}), {})
    assert engine.fast(engine.spec("pulley64", "", {}), {}) is None
