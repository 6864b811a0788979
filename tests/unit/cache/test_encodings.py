"""Frames that stay as they are stored: who gets them, and who gets them decoded."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import threading
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from wasmkilnd import wire
from wasmkilnd.cache import decoded as decoding
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.null_tier import NullTier
from wasmkilnd.cache.tiered import TieredCache
from wasmkilnd.cache.value.pieces import RAW, ZSTD, Body, cut, decoded, pack
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.model import Artifact, CacheKey, Origin
from wasmkilnd.wait_budget import Allowance, WaitBudget
from wasmkilnd.wire import CHUNK_BYTES

from tests.contract.values import artifact, payload_of, same
from tests.doubles.null_host import null_host

ACCEPTS = frozenset({ZSTD})


def with_payload(payload: bytes) -> Artifact:
    return dataclasses.replace(
        artifact(),
        sha256=hashlib.sha256(payload).hexdigest(),
        size_bytes=len(payload),
        frames=wire.to_frames(payload),
    )


def body_of(payload: bytes) -> tuple[Body, list[bytes]]:
    packed = [pack(ZSTD, piece) for piece in cut(payload)]
    return Body(ZSTD, len(payload), tuple(p for _, p in packed)), [s for s, _ in packed]


def encoded(one: Artifact) -> Artifact:
    body, stored = body_of(payload_of(one.frames))
    return dataclasses.replace(one, frames=tuple(body.stored_frames(0, stored)), encoding=ZSTD)


ONE = with_payload(b"native code " * 100_000)

payloads = st.builds(
    lambda unit, size: (unit * (size // len(unit) + 1))[:size],
    st.binary(min_size=1, max_size=200),
    st.one_of(
        st.integers(1, 5000),
        st.integers(CHUNK_BYTES - 2, CHUNK_BYTES + 2),
        st.integers(2 * CHUNK_BYTES - 2, 2 * CHUNK_BYTES + 2),
    ),
)


@settings(max_examples=100)
@given(payloads)
def test_decoding_returns_what_was_stored(payload: bytes) -> None:
    one = with_payload(payload)
    kept = encoded(one)
    body, stored = body_of(payload)
    assert payload_of(kept.frames) == b"".join(stored)
    assert same(decoded(kept), one)
    assert body.frames(0, stored) == list(one.frames)
    # One after the other, the pieces are what any zstd decoder reads.
    reader = zstandard.ZstdDecompressor().stream_reader(b"".join(stored), read_across_frames=True)
    assert reader.read(len(payload) + 1) == payload


def test_what_is_not_encoded_is_left_alone() -> None:
    assert decoded(ONE) is ONE


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda stored: None, "incomplete"),
        (lambda stored: stored[:-1], "truncated"),
        (lambda stored: stored + b"x", "format"),
        (lambda stored: stored[:-1] + bytes([stored[-1] ^ 1]), "digest"),
    ],
)
def test_a_piece_that_is_not_the_signed_one_is_never_kept(spoil: Any, cause: str) -> None:
    body, stored = body_of(b"code" * 1000)
    with pytest.raises(ValueRejected) as rejected:
        body.stored_frames(0, [spoil(stored[0])])
    assert rejected.value.cause.value == cause


@pytest.mark.parametrize(
    "stored",
    [
        b"no zstd at all",
        zstandard.ZstdCompressor().compress(b"x" * 99),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100),
        zstandard.ZstdCompressor().compress(b"x" * 10**9),
    ],
)
def test_a_signed_piece_of_another_size_is_never_kept(stored: bytes) -> None:
    body = Body(ZSTD, 100, (pack(RAW, memoryview(stored))[1],))
    for take in (body.stored_frames, body.frames):
        with pytest.raises(ValueRejected):
            take(0, [stored])


@pytest.mark.parametrize(
    "frames",
    [
        (),
        encoded(ONE).frames[:-1],
        (*encoded(ONE).frames, *encoded(ONE).frames),
        tuple(reversed(encoded(ONE).frames)),
        tuple(frame[:-1] for frame in encoded(ONE).frames),
        tuple(frame + b"x" for frame in encoded(ONE).frames),
    ],
)
def test_frames_that_do_not_decode_to_the_artifact_are_refused(frames: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueRejected):
        decoded(dataclasses.replace(ONE, frames=frames, encoding=ZSTD))


class Far(MemoryTier):
    """A shared tier that has ONE, and returns it as the caller accepts it."""

    name = "redis"

    def __init__(self) -> None:
        super().__init__(0)
        self.gets: list[frozenset[str]] = []
        self.gate = asyncio.Event()

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        self.gets.append(accept)
        await self.gate.wait()
        return encoded(ONE) if ZSTD in accept else ONE


class Tiers:
    def __init__(self) -> None:
        self.near = MemoryTier(10_000_000)
        self.far = Far()
        writes = WriteBehind(self.far, lambda: 1_000_000, NullTier("").always_ready)
        self.cache = TieredCache(self.near, self.near, *null_host(), self.far, writes)

    async def get(self, accept: frozenset[str] = frozenset()) -> tuple[Artifact, Origin]:
        found = await self.cache.get(ONE.key, WaitBudget(), accept)
        assert found
        return found


@pytest.fixture
def tiers() -> Tiers:
    return Tiers()


async def test_a_packed_and_a_raw_reader_do_not_get_each_others(tiers: Tiers) -> None:
    unknown = ACCEPTS | {"br"}
    waiting = [asyncio.create_task(tiers.get(accept)) for accept in (ACCEPTS, frozenset(), unknown)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tiers.far.gate.set()
    packed, raw, other = await asyncio.gather(*waiting)
    assert same(raw[0], ONE)
    assert packed[0].encoding == other[0].encoding == ZSTD
    assert same(decoded(packed[0]), ONE)
    # The third shared the first one's look-up: its second encoding is one that nobody stores.
    assert sorted(map(len, tiers.far.gets)) == [0, 1]
    tiers.near.check()


async def test_memory_keeps_what_arrived_until_somebody_needs_the_bytes(tiers: Tiers) -> None:
    tiers.far.gate.set()
    packed, origin = await tiers.get(ACCEPTS)
    assert origin is Origin.REDIS
    size_packed = tiers.near.usage().bytes
    assert await tiers.get(ACCEPTS) == (packed, Origin.MEMORY)
    raw, origin = await tiers.get()
    assert origin is Origin.MEMORY
    assert same(raw, ONE)
    # From now on memory has the bytes, and gives them to both.
    assert tiers.near.usage().bytes > size_packed
    assert await tiers.get() == (raw, Origin.MEMORY)
    assert await tiers.get(ACCEPTS) == (raw, Origin.MEMORY)
    assert len(tiers.far.gets) == 1
    tiers.near.check()


async def test_a_flight_gets_bytes(tiers: Tiers) -> None:
    await tiers.near.put(encoded(ONE))
    found = await tiers.cache.get_local(ONE.key)
    assert found
    assert same(found, ONE)


async def test_many_callers_share_one_decoding_and_one_that_leaves_ends_it_for_nobody(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, began, calls = threading.Event(), threading.Event(), []

    def slow(one: Artifact) -> Artifact:
        calls.append(one)
        began.set()
        gate.wait(10)
        return decoded(one)

    monkeypatch.setattr(decoding, "decoded", slow)
    await tiers.near.put(encoded(ONE))
    waiting = [asyncio.create_task(tiers.get()) for _ in range(5)]
    assert await asyncio.to_thread(began.wait, 10)
    waiting[0].cancel()
    await asyncio.sleep(0)
    gate.set()
    [(first, _), *others] = await asyncio.gather(*waiting[1:])
    assert same(first, ONE)
    assert all(each is first for each, _ in others)
    assert len(calls) == 1
    assert tiers.near.holds(first)


async def test_what_was_evicted_meanwhile_does_not_come_back(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, began, calls = threading.Event(), threading.Event(), []

    def slow(one: Artifact) -> Artifact:
        calls.append(one)
        began.set()
        gate.wait(10)
        return decoded(one)

    monkeypatch.setattr(decoding, "decoded", slow)
    kept = encoded(ONE)
    await tiers.near.put(kept)
    waiting = asyncio.create_task(tiers.get())
    assert await asyncio.to_thread(began.wait, 10)
    tiers.near.drop([kept])
    gate.set()
    assert same((await waiting)[0], ONE)
    assert await tiers.near.get(ONE.key) is None


async def test_what_cannot_be_decoded_is_dropped_and_looked_up_again(tiers: Tiers) -> None:
    tiers.far.gate.set()
    broken = dataclasses.replace(encoded(ONE), frames=encoded(ONE).frames[:-1])
    await tiers.near.put(broken)
    with capture_logs() as logs:
        found, origin = await tiers.get()
    assert origin is Origin.REDIS
    assert same(found, ONE)
    assert [log["event"] for log in logs] == ["cannot decode an artifact"]
    assert tiers.far.gets == [frozenset()]
