"""The request path over doubles at its ports: what it calls, in which order, how often."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from wasmkilnd import errors
from wasmkilnd.compile import Request, Served, Terms, admit, check_sha256
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.files.spooled import Spooled
from wasmkilnd.model import CacheKey, Origin
from wasmkilnd.waits.budgets import WaitBudget
from wasmkilnd.waits.flights import FairShare, Waiter
from wasmkilnd.wire import CHUNK_BYTES

from tests.doubles.until import until
from tests.unit.services import CORE, A, Rig, refused


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_memory_hit_waits_for_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await rig.compiler.compile(Request(wasm=CORE))
    monkeypatch.setattr(rig.cache, "wait_budget", None)
    request = Request(sha256=first.artifact.module_sha256)
    for _ in range(2):
        assert rig.compiler.hit(request) == Served(first.artifact, Origin.MEMORY)


async def test_a_module_that_broke_a_compiler_while_its_job_waited_is_refused(rig: Rig) -> None:
    rig.engines.free.clear()
    waiting = asyncio.create_task(rig.compiler.compile(Request(wasm=CORE)))
    await rig.engines.started.wait()
    await asyncio.sleep(0.2)
    spec = rig.engines.spec("usual", "", "", {})
    key = CacheKey(hashlib.sha256(CORE).hexdigest(), spec.fingerprint)
    await rig.quarantine.report(
        key, spec, errors.compile_timeout("usual-1", "compiling", 30), WaitBudget()
    )
    rig.engines.free.set()
    with pytest.raises(WasmkilnError) as failure:
        await waiting
    assert failure.value.reason is Reason.MODULE_QUARANTINED
    assert rig.engines.compiles == 0


async def test_an_artifact_stored_while_its_job_waited_is_not_compiled_again(rig: Rig) -> None:
    rig.engines.free.clear()
    waiting = asyncio.create_task(rig.compiler.compile(Request(wasm=CORE)))
    await rig.engines.started.wait()
    busy, rig.engines.free = rig.engines.free, asyncio.Event()
    rig.engines.free.set()
    anew = await rig.compiler.compile(Request(wasm=CORE, skip_cache_lookup=True))
    assert anew.origin is Origin.COMPILED
    busy.set()
    assert (await waiting).origin is Origin.MEMORY
    assert rig.engines.compiles == 1


async def refused_hits(rig: Rig, **fields: object) -> str:
    async def call() -> None:
        await rig.compiler.compile(Request(hits_only=True, **fields))  # type: ignore[arg-type]

    with pytest.raises(WasmkilnError) as failure:
        await call()
    assert failure.value.reason is Reason.ROLE_MISSING
    return failure.value.metadata["role"]


async def test_a_caller_for_hits_alone_joins_no_flight(rig: Rig) -> None:
    sha256 = hashlib.sha256(CORE).hexdigest()
    rig.engines.release.clear()
    other = asyncio.create_task(rig.compiler.compile(Request(wasm=CORE)))
    await rig.engines.started.wait()
    assert await refused_hits(rig, sha256=sha256) == "compile"
    rig.engines.release.set()
    await other


# What Compile and Load refuse for want of room, and what waiting calls hold


def sized(number: int, size_bytes: int = 60) -> bytes:
    """Return a module that differs from all others."""
    return CORE + number.to_bytes(size_bytes - len(CORE), "big")


async def working(rig: Rig, compiles: int, validating: int) -> None:
    """Return once the engines do so much."""
    await until(lambda: (rig.engines.compiles, rig.engines.validating) == (compiles, validating))


async def test_the_modules_of_all_work_under_way_have_one_limit(rig: Rig) -> None:
    """A flight holds its module whatever it waits for: the limit is twice that of a queue."""
    rig.engines.release.clear()
    b = Terms(Waiter("b"))
    calls = [
        asyncio.create_task(rig.compiler.compile(Request(wasm=sized(0), terms=Terms(A)))),
        asyncio.create_task(rig.compiler.load(Request(wasm=sized(1), terms=Terms(A)))),
    ]
    await working(rig, compiles=1, validating=1)
    for call in (
        rig.compiler.compile(Request(wasm=sized(2), terms=Terms(A))),
        rig.compiler.load(Request(wasm=sized(2), terms=Terms(A))),
    ):
        failure = await refused(call)
        assert failure.reason is Reason.COMPILE_QUEUE_FULL
        assert failure.metadata["limit"] == "queue"
        assert failure.retry_after_s == 1.0
    # Who joins holds nothing, and there is room for another caller.
    calls.append(asyncio.create_task(rig.compiler.compile(Request(wasm=sized(0), terms=b))))
    calls.append(asyncio.create_task(rig.compiler.compile(Request(wasm=sized(3), terms=b))))
    await working(rig, compiles=2, validating=1)
    rig.engines.release.set()
    await asyncio.gather(*calls)
    # All is put down, whatever became of it.
    rig.engines.failure = errors.module_invalid("usual-1", "bad", 8)
    for _ in range(5):
        assert (
            await refused(rig.compiler.load(Request(wasm=sized(4))))
        ).reason is Reason.MODULE_INVALID
        order = Request(wasm=sized(4))
        assert (await refused(rig.compiler.compile(order))).reason is Reason.MODULE_INVALID


async def test_a_module_in_a_file_leaves_memory_to_others(rig: Rig, tmp_path: Path) -> None:
    """It counts with the piece that is in memory, not with its size."""
    rig.engines.release.clear()
    rig.compiler.in_progress = FairShare(lambda: 4 * CHUNK_BYTES)
    rig.compiler.module_bytes = lambda: 8 * CHUNK_BYTES
    wasm = sized(1, 6 * CHUNK_BYTES)
    large = Spooled(tmp_path)
    large.append(wasm)
    calls = [asyncio.create_task(rig.compiler.compile(Request(wasm=large, terms=Terms(A))))]
    await working(rig, compiles=1, validating=0)
    other = Request(wasm=sized(2), terms=Terms(Waiter("b")))
    calls.append(asyncio.create_task(rig.compiler.compile(other)))
    await working(rig, compiles=2, validating=0)
    rig.engines.release.set()
    await asyncio.gather(*calls)


async def test_a_call_cancelled_at_any_moment_holds_nothing(rig: Rig) -> None:
    rig.engines.release.clear()
    rig.engines.keep = False
    for moment in range(10):
        call = asyncio.create_task(rig.compiler.compile(Request(wasm=sized(moment))))
        for _ in range(moment):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.sleep(0)
        await rig.compiler.flights.settle(5)
    rig.engines.release.set()
    await rig.compiler.compile(Request(wasm=sized(11)))


# Load and FindMissing over doubles at their ports


async def test_a_core_module_of_the_component_engine_is_still_missing_for_the_default(
    rig: Rig,
) -> None:
    served = await rig.compiler.compile(Request(wasm=CORE, engine="other"))
    sha256 = served.artifact.module_sha256
    assert await rig.compiler.find_missing([Request(sha256)]) == [0]
    assert await rig.compiler.find_missing([Request(sha256, engine="other")]) == []


# Admission accepts binaries only, and tells callers what other bytes are


@pytest.mark.parametrize(
    "data",
    [
        b"\n  ;; a comment\n(module)",
        b"\0wasmer-universal" + bytes(60),
        b"wasmer-universal" + bytes(60),
        b"WASMER\0\0" + bytes(60),
        b"wasmer is a runtime",
        b"\0asm\x0a\0\x01\0",
        b"MZ\x90\0",
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    """Of others, tests/verdicts/cases.py and tests/e2e/error_rows.py have some."""
    words = "WebAssembly text" if b"module" in data else "not a WebAssembly binary"
    with pytest.raises(WasmkilnError, match=words) as refusal:
        admit(data, data, 100)
    assert refusal.value.reason is Reason.NOT_WASM


def test_size_limit_is_inclusive() -> None:
    assert admit(CORE + bytes(92), CORE, 100).sha256
    with pytest.raises(WasmkilnError) as refusal:
        admit(CORE + bytes(93), CORE, 100)
    assert refusal.value.reason is Reason.MODULE_TOO_LARGE
    about = {"size_bytes": "101", "limit_bytes": "100", "limit": "max_module_bytes"}
    assert refusal.value.metadata == about


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "\n", "g" * 64])
def test_malformed_digests_are_refused(digest: str) -> None:
    with pytest.raises(WasmkilnError) as refusal:
        check_sha256(digest, "sha256")
    assert refusal.value.reason is Reason.INVALID_REQUEST
    assert refusal.value.field == "sha256"


# Among other daemons: what a flight asks of its claim and of the shared tier


class Claim:
    """A claim whose results a test decides, and whose calls it records."""

    def __init__(self, takes: Sequence[bool] = (True,), stored: Sequence[bool] = ()) -> None:
        self.takes, self.elsewhere = list(takes), list(stored)
        self.said: list[str] = []

    async def stored(self) -> None:
        await asyncio.Event().wait()

    async def take(self) -> bool:
        return self.takes.pop(0)

    async def wait_for_others(self) -> bool:
        return self.elsewhere.pop(0)

    def ignore_others(self) -> None:
        self.said.append("ignored others")

    def failed(self) -> None:
        self.said.append("failed")


def contest(rig: Rig, claim: Claim) -> None:
    """Have the fleet hand out ``claim``."""

    @asynccontextmanager
    async def claimed(
        key: CacheKey, budget: WaitBudget, *, alone: bool = False
    ) -> AsyncIterator[Claim]:
        assert not alone
        yield claim
        claim.said.append("ended")

    rig.fleet.claim = claimed  # type: ignore[method-assign,assignment]


async def test_other_daemons_learn_of_a_refusal_before_it_is_explained(rig: Rig) -> None:
    claim = Claim()
    contest(rig, claim)

    async def refusal() -> WasmkilnError:
        assert claim.said == ["failed", "ended"]
        assert rig.engines.workers == 0
        claim.said.append("explained")
        return errors.module_invalid("usual-1", "bad", 8)

    rig.engines.refusal = refusal
    assert (await refused(rig.compiler.compile(Request(wasm=CORE)))).message
    assert claim.said[-1] == "explained"


async def test_an_unusable_artifact_of_another_daemon_is_compiled_here(rig: Rig) -> None:
    claim = Claim(takes=[False, True], stored=[True])
    contest(rig, claim)
    assert (await rig.compiler.compile(Request(wasm=CORE))).origin is Origin.COMPILED
    assert claim.said == ["ignored others", "ended"]
