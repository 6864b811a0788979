"""Uploads: what is kept, for how long, where it lies, and what a full disk does to it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.files.spooled import Spooled
from wasmkilnd.model import ALL_ROLES, Identity, Reloadable
from wasmkilnd.rpc import upload
from wasmkilnd.rpc.traffic import Call, Traffic
from wasmkilnd.rpc.upload import Uploads

from tests.doubles.context import Context
from tests.doubles.until import until
from tests.unit.services import refused

MIB = 1024 * 1024
LARGE = os.urandom(9 * MIB + 5)
DIGEST = hashlib.sha256(LARGE).hexdigest()


def first(content: bytes = LARGE, **fields: Any) -> pb.UploadRequest:
    digest = hashlib.sha256(content).hexdigest()
    return pb.UploadRequest(sha256=digest, size_bytes=len(content), **fields)


def pieces(content: bytes = LARGE, start: int = 0) -> Iterator[pb.UploadRequest]:
    yield first(content)
    for at in range(start, len(content), MIB):
        yield pb.UploadRequest(offset=at, data=content[at : at + MIB])


class Rig:
    """Uploads, and calls that bring them."""

    def __init__(self, folder: Path, limit_bytes: int = 100 * MIB) -> None:
        self.limits = SimpleNamespace(
            upload_bytes=limit_bytes, state_dir=folder, caller_timeout_s=60.0
        )
        limits = Reloadable[Any](self.limits)
        self.traffic = Traffic(limits, MIB)
        self.uploads = Uploads(limits, self.traffic)

    def call(self, caller: str = "a", **identity: Any) -> Call:
        call = Call(Context())
        call.caller, call.task = caller, asyncio.current_task()
        call.identity = Identity(identity.pop("name", ""), ALL_ROLES, **identity)
        return call

    async def take(
        self, messages: Iterator[pb.UploadRequest], call: Call | None = None, end: Any = None
    ) -> Spooled:
        """Bring messages, then wait for ``end``; return the module."""

        async def read() -> pb.UploadRequest | None:
            await asyncio.sleep(0)
            if (message := next(messages, None)) is None and end:
                await end.wait()
            return message

        call = call or self.call()
        async with self.uploads.take(read, call, lambda *_: None) as (digest, module):
            assert digest == call.module
            return module

    def held(self, content: bytes = LARGE, **identity: Any) -> int:
        digest = hashlib.sha256(content).hexdigest()
        return self.uploads.held_bytes(digest, self.call(**identity))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_it_is_kept_ten_minutes_after_the_last_call(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload.KEPT_S == 600
    monkeypatch.setattr(upload, "KEPT_S", 0.2)
    for content in (LARGE, LARGE[:100]):
        failed = await refused(rig.take(iter([first(content, data=content[:50])])))
        assert (failed.reason, failed.metadata) == (
            *(Reason.UPLOAD_INTERRUPTED, {"held_bytes": "50"}),
        )
        assert rig.held(content) == 50
        await until(lambda: rig.uploads.counts.total == 0)
        assert rig.held(content) == 0


async def test_it_is_not_thrown_away_while_a_call_brings_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "KEPT_S", 0.0)
    end, messages = asyncio.Event(), list(pieces())
    bringing = asyncio.create_task(rig.take(iter(messages), end=end))
    await until(lambda: rig.held() == len(LARGE))
    await asyncio.sleep(0.1)
    assert rig.held() == len(LARGE)
    end.set()
    assert len(await bringing) == len(LARGE)


async def test_who_takes_over_waits_for_what_is_being_written(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on, append = threading.Event(), threading.Event(), Spooled.append

    def slow(self: Spooled, data: bytes) -> None:
        writing.set()
        assert go_on.wait(60)
        append(self, data)

    monkeypatch.setattr(Spooled, "append", slow)
    one, other = rig.call(), rig.call("b")

    async def run(call: Call, messages: Iterator[pb.UploadRequest]) -> Any:
        call.task = asyncio.current_task()
        return await rig.take(messages, call)

    cut = asyncio.create_task(run(one, pieces()))
    await until(writing.is_set)
    second = asyncio.create_task(run(other, pieces()))
    with pytest.raises(asyncio.CancelledError):
        await cut
    assert one.refusal
    assert one.refusal.reason is Reason.UPLOAD_INTERRUPTED
    go_on.set()
    module = await second
    assert module.sha256 == DIGEST


async def test_a_disk_that_hangs_fails_the_call_in_time_and_keeps_the_upload(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, append = threading.Event(), Spooled.append

    def hangs(self: Spooled, data: bytes) -> None:
        assert go_on.wait(60)
        append(self, data)

    monkeypatch.setattr(Spooled, "append", hangs)
    rig.limits.caller_timeout_s = 0.2
    # As many as there are threads, one that waits for a thread, and one that goes on.
    contents = [LARGE, LARGE[1:], LARGE[2:], LARGE]
    for content in contents:
        failed = await refused(rig.take(pieces(content)))
        assert (failed.reason, failed.metadata["limit"]) == (Reason.COMPILE_QUEUE_FULL, "uploads")
        assert "no answer within 0.2 s" in failed.message
    assert rig.uploads.counts.total == 3
    go_on.set()
    await until(lambda: all(rig.held(content) == MIB for content in contents))
    rig.limits.caller_timeout_s = 60.0
    assert (await rig.take(pieces(start=MIB))).sha256 == DIGEST


async def test_a_folder_that_cannot_be_made_refuses(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("")
    failed = await refused(Rig(tmp_path).take(pieces()))
    assert (failed.reason, failed.metadata["limit"]) == (Reason.COMPILE_QUEUE_FULL, "uploads")


async def test_what_is_left_gives_way_the_callers_own_first_and_the_oldest(tmp_path: Path) -> None:
    rig = Rig(tmp_path, limit_bytes=4 * MIB - 1)
    old, own, end = LARGE[:MIB], LARGE[1 : MIB + 1], asyncio.Event()
    await refused(rig.take(iter([first(old, data=b"x")]), rig.call("a")))
    await refused(rig.take(iter([first(own, data=b"x")]), rig.call("b")))
    # One that goes on is not the oldest any more.
    await refused(rig.take(iter([first(old, offset=1)]), rig.call("a")))
    new = LARGE[2 : MIB + 2]
    bringing = asyncio.create_task(rig.take(pieces(new), rig.call("b"), end))
    await until(lambda: rig.held(new) == MIB)
    assert (rig.held(old), rig.held(own)) == (1, 0)
    newest = LARGE[3 : MIB + 3]
    await refused(rig.take(iter([first(newest, data=b"x")]), rig.call("c")))
    assert (rig.held(old), rig.held(new), rig.held(newest)) == (0, MIB, 1)
    end.set()
    await bringing


@pytest.mark.parametrize(
    ("failure", "kept"),
    [
        (WasmkilnError(Reason.DIGEST_MISMATCH, ""), False),
        (WasmkilnError(Reason.MODULE_INVALID, ""), False),
        (WasmkilnError(Reason.COMPILE_QUEUE_FULL, ""), True),
        (WasmkilnError(Reason.WORKER_UNAVAILABLE, ""), True),
    ],
)
async def test_what_may_be_loaded_later_is_kept(
    rig: Rig, failure: WasmkilnError, kept: bool
) -> None:
    messages = pieces()

    async def read() -> pb.UploadRequest | None:
        return next(messages, None)

    with pytest.raises(WasmkilnError):
        async with rig.uploads.take(read, rig.call(), lambda *_: None):
            raise failure
    assert rig.held() == (len(LARGE) if kept else 0)


async def test_each_identity_of_each_namespace_has_its_own(rig: Rig) -> None:
    mine: Any = {"name": "token:a", "namespace": "team"}
    await refused(rig.take(iter([first(data=b"x")]), rig.call(**mine)))
    assert rig.held(**mine) == 1
    assert rig.held(name="token:b", namespace="team") == 0
    assert rig.held(name="token:a") == 0
    assert rig.held() == 0


async def test_what_goes_on_counts_for_who_brings_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, limit_bytes=40 * MIB)
    await refused(rig.take(iter([first(data=b"x")]), rig.call("one")))
    other = LARGE[:-1]
    await refused(rig.take(iter([first(other, data=b"x")]), rig.call("one")))
    # Once both go on by another connection, they are no part of its share.
    for content in (LARGE, other):
        await refused(rig.take(iter([first(content, offset=1)]), rig.call("two")))
    failed = await refused(rig.take(iter([first(LARGE[:-2])]), rig.call("one")))
    assert failed.reason is Reason.UPLOAD_INTERRUPTED
    assert rig.held() == rig.held(other) == 1
    # With that one, another of its own would take more than it leaves free.
    await refused(rig.take(iter([first(LARGE[:-3])]), rig.call("one")))
    assert rig.uploads.counts.total == 3
