"""Upload: a module in pieces, which goes on where it was cut, and is never whole in memory."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import resource
import struct
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller, RawCaller, failure_of, header_of, held_worker
from tests.e2e.daemon import Configured, Daemon, state_with
from tests.e2e.fixtures import serving
from tests.e2e.processes import eventually
from tests.e2e.programs import inside
from tests.e2e.tenancy import house
from tests.servers.object_stores import KINDS_OF_OBJECT_STORES

MIB = 1024 * 1024
UPLOAD = "/wasmkiln.v1.ModuleService/Upload"
ABORTED = grpc.StatusCode.ABORTED
FLAGS = ["--redis-url", "none", "--max-module-bytes", "20MiB"]
_tags = itertools.count(1)

kiln = serving(ENGINE, flags=FLAGS)


def large(size_bytes: int = 3 * MIB) -> bytes:
    """Return a module of about that size which does not compress, unlike all others."""
    tag = next(_tags)
    return wasm.adder(tag) + wasm.section(0, b"\x01x" + random.Random(tag).randbytes(size_bytes))


def pieces(
    module: bytes, start: int = 0, stop: int | None = None, *, sha256: str = "", size: int = 0
) -> Iterator[pb.UploadRequest]:
    """Return the messages that bring a module from ``start`` to ``stop``, a MiB each."""
    first: dict[str, Any] = {
        "sha256": sha256 or wasm.digest(module),
        "size_bytes": size or len(module),
        "engine": ENGINE,
    }
    yield pb.UploadRequest(**first, offset=start)
    for at in range(start, len(module) if stop is None else stop, MIB):
        yield pb.UploadRequest(offset=at, data=module[at : min(at + MIB, stop or len(module))])


class Uploader(Caller):
    """A caller that uploads."""

    metadata: tuple[tuple[str, str], ...] = ()

    def upload(self, messages: Any) -> Any:
        """Begin an upload; return it without waiting."""
        return self.stub.Upload.future(messages, timeout=120, metadata=self.metadata)

    def held(self, module: bytes | str) -> int:
        """Return how much the daemon has of a module."""
        sha256 = module if isinstance(module, str) else wasm.digest(module)
        asked = pb.QueryUploadRequest(sha256=sha256)
        return int(self.stub.QueryUpload(asked, metadata=self.metadata).held_bytes)


class Line:
    """A stream that stays open after its messages, until it is told to end."""

    def __init__(self, messages: Iterator[pb.UploadRequest]) -> None:
        self._messages, self._end = messages, threading.Event()

    def __iter__(self) -> Iterator[pb.UploadRequest]:
        return self

    def __next__(self) -> pb.UploadRequest:
        for message in self._messages:
            return message
        self._end.wait(120)
        raise StopIteration

    def end(self) -> None:
        """Say that no more comes."""
        self._end.set()


class Ended:
    """A call with one answer, as ``failure_of`` takes one with many."""

    def __init__(self, call: Any) -> None:
        self.code, self.trailing_metadata = call.code, call.trailing_metadata
        self._result = call.result

    def __iter__(self) -> Iterator[Any]:
        yield self._result()


def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str], float]:
    """Wait for the failure of a call; return its code, reason, metadata and seconds to wait."""
    return failure_of(Ended(call))


@contextlib.contextmanager
def cut_at(caller: Uploader, module: bytes, start: int, stop: int) -> Iterator[None]:
    """Upload a part of a module, wait until the daemon has it, and hang up at the end."""
    line = Line(pieces(module, start, stop))
    call = caller.upload(line)
    eventually(lambda: caller.held(module) == stop, "the daemon does not take it")
    yield
    call.cancel()
    line.end()


def test_what_was_uploaded_is_loaded(kiln: Daemon) -> None:
    with Uploader(kiln) as caller:
        for module in (wasm.adder(next(_tags)), large(), large(9 * MIB)):
            answer = caller.upload(pieces(module)).result().loaded
            assert (answer.sha256, answer.size_bytes) == (wasm.digest(module), len(module))
            assert (answer.engine, answer.already_loaded) == (ENGINE, False)
            assert header_of(caller.compile(wasm.digest(module))).module_sha256 == answer.sha256
            assert caller.upload(pieces(module)).result().loaded.already_loaded
            assert caller.held(module) == 0
    assert kiln.metric("uploads") == kiln.metric("upload_bytes") == 0


def test_an_upload_that_is_cut_ten_times_arrives_once(kiln: Daemon) -> None:
    module, sent = large(11 * MIB), 0
    for at in range(0, 11 * MIB, MIB + 77_777):
        if (stop := at + MIB + 77_777) > len(module):
            break
        with Uploader(kiln) as caller:  # Each has a new connection.
            assert caller.held(module) == at
            with cut_at(caller, module, at, stop):
                sent += stop - at
    with Uploader(kiln) as caller:
        held = caller.held(module)
        assert caller.upload(pieces(module, held)).result().loaded.sha256 == wasm.digest(module)
    assert held == sent


def test_the_last_byte_may_be_held_already(kiln: Daemon) -> None:
    module = large()
    with Uploader(kiln) as caller:
        with cut_at(caller, module, 0, len(module)):
            pass
        assert caller.held(module) == len(module)
        caller.upload(pieces(module, len(module))).result()


def test_a_second_call_takes_the_upload_over(kiln: Daemon) -> None:
    module = large()
    with Uploader(kiln) as one, Uploader(kiln) as other:
        line = Line(pieces(module, 0, MIB))
        first = one.upload(line)
        eventually(lambda: other.held(module) == MIB, "the daemon does not take it")
        other.upload(pieces(module, MIB)).result()
        code, reason, told, _ = refused(first)
        line.end()
    assert (code, reason, told["held_bytes"]) == (ABORTED, "UPLOAD_INTERRUPTED", str(MIB))


def test_what_overlaps_counts_once_and_a_gap_is_told(kiln: Daemon) -> None:
    module = large()
    with Uploader(kiln) as caller:
        code, reason, told, _ = refused(caller.upload(pieces(module, 5)))
        assert (code, reason, told["held_bytes"]) == (ABORTED, "UPLOAD_INTERRUPTED", "0")
        code, reason, told, _ = refused(caller.upload(pieces(module, 0, 2 * MIB)))
        assert (code, reason, told["held_bytes"]) == (ABORTED, "UPLOAD_INTERRUPTED", str(2 * MIB))
        # What the daemon has is not read again, whatever it is now.
        other = bytes(2 * MIB - 100) + module[2 * MIB - 100 :]
        messages = pieces(other, MIB - 100, sha256=wasm.digest(module))
        assert caller.upload(messages).result().loaded.size_bytes == len(module)


def test_other_bytes_than_announced_are_thrown_away(kiln: Daemon) -> None:
    module = large()
    bad = module[:-1] + bytes([module[-1] ^ 1])
    with Uploader(kiln) as caller:
        code, reason, told, _ = refused(caller.upload(pieces(bad, sha256=wasm.digest(module))))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH")
        assert told["actual_sha256"] == wasm.digest(bad)
        assert caller.held(module) == 0
        caller.upload(pieces(module)).result()


@pytest.mark.parametrize(
    ("reason", "messages"),
    [
        ("INVALID_REQUEST", []),
        ("INVALID_REQUEST", [pb.UploadRequest(size_bytes=1)]),
        ("INVALID_REQUEST", [pb.UploadRequest(sha256="A" * 64, size_bytes=1)]),
        ("INVALID_REQUEST", [pb.UploadRequest(sha256="a" * 64, size_bytes=1, data=b"ab")]),
        ("INVALID_REQUEST", [pb.UploadRequest(sha256="a" * 64, data=b"a")]),
        (
            "INVALID_REQUEST",
            [pb.UploadRequest(sha256="a" * 64, size_bytes=2 * MIB, data=bytes(MIB + 1))],
        ),
        ("INVALID_REQUEST", [pb.UploadRequest(sha256="a" * 64, engine="e" * 200)]),
        ("MODULE_TOO_LARGE", [pb.UploadRequest(sha256="a" * 64, size_bytes=20 * MIB + 1)]),
        ("ENGINE_UNKNOWN", [pb.UploadRequest(sha256="a" * 64, size_bytes=2 * MIB, engine="v8")]),
        ("NOT_WASM", [pb.UploadRequest(sha256=hashlib.sha256().hexdigest())]),
    ],
)
def test_what_cannot_be_an_upload_is_refused(
    kiln: Daemon, reason: str, messages: list[pb.UploadRequest]
) -> None:
    with Uploader(kiln) as caller:
        code, told, *_ = refused(caller.upload(iter(messages)))
        assert (code, told) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
        assert caller.held("a" * 64) == 0
    eventually(lambda: kiln.metric("uploads") == 0, "something of it is kept")


def test_an_invalid_module_is_not_kept(kiln: Daemon) -> None:
    module = large()
    bad = module[:8] + b"\xff" + module[9:]
    with Uploader(kiln) as caller:
        assert refused(caller.upload(pieces(bad)))[1] == "MODULE_INVALID"
        assert caller.held(bad) == 0


@pytest.fixture
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of the test's own, with the flags that it asks for."""
    with Daemon(state_with(tmp_path / "state", ENGINE), [*FLAGS, *request.param]) as daemon:
        yield daemon


@pytest.mark.parametrize("own", [["--upload-bytes", "10MiB"]], indirect=True)
def test_nobody_fills_the_disk_of_others(own: Daemon) -> None:
    first, second, third = large(12 * MIB), large(4 * MIB), large(MIB)
    with Uploader(own) as one, Uploader(own) as other:
        # One alone may be as large as it is; beside it is room for none.
        with cut_at(one, first, 0, MIB):
            code, reason, told, retry_s = refused(other.upload(pieces(third)))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL")
        assert (told["limit"], retry_s > 0) == ("uploads", True)
        one.upload(pieces(first, MIB)).result()
        # It ends, and frees its room; the same caller has a half at most.
        with cut_at(one, second, 0, MIB):
            assert refused(one.upload(pieces(large(4 * MIB))))[2]["limit"] == "uploads"
            other.upload(pieces(third)).result()
        one.upload(pieces(second, MIB)).result()
    assert own.metric("refused_total", limit="uploads") == 2


def left(caller: Uploader, number: int) -> str:
    """Begin an upload of 200 bytes, and leave it; return its digest."""
    digest = hashlib.sha256(bytes([number])).hexdigest()
    message = pb.UploadRequest(sha256=digest, size_bytes=200, data=bytes(100))
    assert refused(caller.upload(iter([message])))[1] == "UPLOAD_INTERRUPTED"
    return digest


@pytest.mark.parametrize("own", [[]], indirect=True)
def test_nobody_has_all_uploads(own: Daemon) -> None:
    with Uploader(own) as one, Uploader(own) as other, contextlib.ExitStack() as stack:
        calls = []
        for number in range(32):
            message = pb.UploadRequest(sha256=f"{number:064}", size_bytes=2, data=b"x")
            line = Line(iter([message]))
            stack.callback(line.end)
            calls.append(one.upload(line))
        eventually(lambda: own.metric("uploads") == 32, "they do not begin")
        assert own.metric("upload_bytes") == 64
        message = pb.UploadRequest(sha256="a" * 64, size_bytes=2, data=b"x")
        assert refused(one.upload(iter([message])))[1] == "COMPILE_QUEUE_FULL"
        module = large()
        assert other.upload(pieces(module)).result().loaded.sha256 == wasm.digest(module)
        assert not any(call.done() for call in calls)


@pytest.mark.parametrize("own", [[]], indirect=True)
def test_uploads_that_were_left_give_way_to_who_comes_the_oldest_first(own: Daemon) -> None:
    digests = []
    for number in range(70):
        with Uploader(own) as caller:  # Each has a new connection, and hangs up.
            digests.append(left(caller, number))
    module = large()
    with Uploader(own) as caller:
        assert caller.upload(pieces(module)).result().loaded.sha256 == wasm.digest(module)
        held = [caller.held(digest) for digest in digests]
        # No caller may have the last one of the 64; another gave way to the module.
        assert held == [0] * 8 + [100] * 62


@pytest.mark.parametrize("own", [["--upload-bytes", "14MiB"]], indirect=True)
def test_another_size_for_a_digest_does_not_pass_the_limit(own: Daemon) -> None:
    module = large(4 * MIB)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Uploader(own)) for _ in range(3)]
        with held_worker(own):
            loading = callers[0].upload(pieces(module))
            eventually(lambda: callers[0].held(module) == len(module), "it is not taken")
            line = Line(pieces(module, 0, MIB, size=len(module) + 1))
            stack.callback(line.end)
            second = callers[1].upload(line)
            eventually(lambda: callers[1].held(module) == MIB, "it is not taken")
            assert own.metric("upload_bytes") == 2 * len(module) + 1
            third = callers[2].upload(pieces(module, size=len(module) + 2))
            assert refused(third)[2]["limit"] == "uploads"
            assert refused(second)[1] == "UPLOAD_INTERRUPTED"
        assert loading.result().loaded.sha256 == wasm.digest(module)
    eventually(lambda: own.metric("upload_bytes") == 0, "something of it counts")
    eventually(lambda: open_uploads(own) == 0, "a file stays open")


@pytest.mark.parametrize("own", [[]], indirect=True)
@pytest.mark.parametrize(("calls", "size_bytes"), [(60, 7 * MIB), (1024, MIB - 1000)])
def test_all_calls_for_one_upload_hold_one_file(own: Daemon, calls: int, size_bytes: int) -> None:
    module = large(size_bytes)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Uploader(own)) for _ in range(calls // 250 + 1)]
        with cut_at(callers[0], module, 0, len(module)):
            pass
        with held_worker(own):
            idle = own.memory("VmRSS")
            Path(f"/proc/{own.pid}/clear_refs").write_text("5")  # VmHWM begins anew.
            named = [
                callers[number % len(callers)].upload(pieces(module, len(module)))
                for number in range(calls)
            ]
            eventually(lambda: own.metric("calls") == calls + 1, "they do not begin")
            more = own.memory("VmHWM") - idle
            print(f"{calls} calls for {len(module) / MIB:.0f} MiB: {more / MIB:.1f} MiB more")
            assert open_uploads(own) == own.metric("uploads") == 1
            assert own.metric("upload_bytes") == len(module)
            assert more <= 8 * MIB + calls * 64 * 1024
        assert all(call.result().loaded.sha256 == wasm.digest(module) for call in named)
    eventually(lambda: open_uploads(own) == 0, "the file stays open")


def test_24_uploads_of_400_kb_over_slow_lines_all_pass(tmp_path: Path) -> None:
    """Each is a message of which a half arrives at first."""
    with (
        Daemon(state_with(tmp_path / "state", ENGINE), ["--redis-url", "none"]) as daemon,
        contextlib.ExitStack() as stack,
    ):
        slow = []
        for _ in range(24):
            module = large(400_000)
            first, second = (each.SerializeToString() for each in pieces(module))
            caller = stack.enter_context(RawCaller(daemon))
            stream = caller.begin(UPLOAD, len(first))
            begun = first + struct.pack(">BI", 0, len(second)) + second[: len(second) // 2]
            assert caller.send(stream, begun) == len(begun)
            slow.append((caller, stream, second[len(second) // 2 :]))
        eventually(lambda: daemon.metric("receive_bytes") >= 24 * MIB, "they are not slow")
        for caller, stream, rest in slow:
            assert caller.send(stream, rest) == len(rest)
            caller.end(stream)
            assert caller.wait(stream)["grpc-status"] == "0"


@pytest.mark.parametrize("own", [["--caller-timeout-s", "1"]], indirect=True)
def test_messages_without_new_bytes_do_not_keep_an_upload_alive(own: Daemon) -> None:
    def messages(module: bytes) -> Iterator[pb.UploadRequest]:
        yield from pieces(module, 0, MIB)
        for number in range(300):
            time.sleep(0.1)
            yield pb.UploadRequest(offset=number, data=bytes(number % 2))

    module = large()
    with Uploader(own) as caller:
        _, reason, told, _ = refused(caller.upload(messages(module)))
        assert (reason, told["limit"]) == ("COMPILE_QUEUE_FULL", "receive")
        caller.upload(pieces(module, MIB)).result()


@pytest.mark.parametrize("own", [[]], indirect=True)
def test_a_full_disk_refuses_an_upload_and_keeps_nothing_of_it(own: Daemon) -> None:
    module, limit = large(6 * MIB), resource.RLIMIT_FSIZE
    before = resource.prlimit(own.pid, limit)
    with Uploader(own) as caller:
        resource.prlimit(own.pid, limit, (4 * MIB, before[1]))
        _, reason, told, retry_s = refused(caller.upload(pieces(module)))
        assert (reason, told["limit"], retry_s > 0) == ("COMPILE_QUEUE_FULL", "uploads", True)
        assert caller.held(module) == own.metric("uploads") == own.metric("upload_bytes") == 0
        eventually(lambda: open_uploads(own) == 0, "the file stays open")
        resource.prlimit(own.pid, limit, before)
        caller.upload(pieces(module)).result()


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon of ``odd_uploads``, and the file that makes its disk hang."""
    hangs = tmp_path / "hangs"
    command = inside("tests.doubles.odd_uploads", str(hangs))
    flags = [*FLAGS, "--caller-timeout-s", "2"]
    with Daemon(state_with(tmp_path / "state", ENGINE), flags, command=command) as daemon:
        yield daemon, hangs


def test_the_files_of_expired_uploads_are_closed_without_the_collector(
    odd: tuple[Daemon, Path],
) -> None:
    daemon, _ = odd
    with Uploader(daemon) as caller:
        for _ in range(5):
            with cut_at(caller, large(), 0, MIB):
                assert open_uploads(daemon)
    eventually(lambda: daemon.metric("uploads") == 0, "they do not expire")
    eventually(lambda: open_uploads(daemon) == 0, "files stay open")


def test_a_disk_that_hangs_ends_uploads_in_time_and_nothing_else(odd: tuple[Daemon, Path]) -> None:
    daemon, hangs = odd
    modules = [large() for _ in range(3)]  # One more than there are threads.
    with Uploader(daemon) as caller:
        os.mkfifo(hangs)
        calls = [caller.upload(pieces(module)) for module in modules]
        for call in calls:
            _, reason, told, _ = refused(call)
            assert (reason, told["limit"]) == ("COMPILE_QUEUE_FULL", "uploads")
            assert "no answer within 2 s" in call.details()
        assert header_of(caller.compile(wasm.adder(next(_tags)))).size_bytes
        # What hangs counts, and does not expire.
        time.sleep(1.5)
        assert daemon.metric("uploads") == 3
        with hangs.open("r+b", buffering=0):
            hangs.unlink()
        eventually(lambda: daemon.metric("uploads") == 0, "they do not expire")
        caller.upload(pieces(modules[0])).result()
        os.mkfifo(hangs)
        refused(caller.upload(pieces(large())))
    daemon.end()
    assert daemon.process.returncode == 0


@pytest.mark.parametrize("own", [["--caller-timeout-s", "1"]], indirect=True)
def test_a_call_that_sends_nothing_is_ended_and_its_upload_kept(own: Daemon) -> None:
    module = large()
    with Uploader(own) as caller:
        line = Line(pieces(module, 0, 2 * MIB))
        code, reason, told, _ = refused(caller.upload(line))
        line.end()
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL")
        assert told["limit"] == "receive"
        caller.upload(pieces(module, caller.held(module))).result()


@pytest.mark.parametrize("own", [[]], indirect=True)
def test_nothing_is_left_of_an_upload_when_the_daemon_dies(own: Daemon) -> None:
    module, uploads = large(), own.state_dir / "uploads"
    with Uploader(own) as caller:
        line = Line(pieces(module, 0, 2 * MIB))
        call = caller.upload(line)
        eventually(lambda: caller.held(module) == 2 * MIB, "the daemon does not take it")
        assert uploads.stat().st_mode & 0o777 == 0o700
        assert list(uploads.iterdir()) == []  # It has no name.
        own.kill()
        line.end()
        assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert list(uploads.iterdir()) == []
    with Daemon(own.state_dir, FLAGS) as again, Uploader(again) as caller:
        assert caller.held(module) == 0
        caller.upload(pieces(module)).result()


@pytest.mark.parametrize("own", [[]], indirect=True)
def test_a_drain_waits_for_uploads_and_begins_none(own: Daemon) -> None:
    module = large()
    with Uploader(own) as caller:
        rest = threading.Event()

        def messages() -> Iterator[pb.UploadRequest]:
            for number, each in enumerate(pieces(module)):
                if number == 2:
                    rest.wait(60)
                yield each

        call = caller.upload(messages())
        eventually(lambda: caller.held(module) == MIB, "the daemon does not take it")
        own.process.terminate()
        own.wait_for_log('"draining"')
        assert refused(caller.upload(pieces(large())))[1] == "SERVER_DRAINING"
        rest.set()
        assert call.result().loaded.sha256 == wasm.digest(module)
    own.end()
    assert own.process.returncode == 0


POLICY = """
[[rule]]
identity = "token:a"
max_module_bytes = "6MiB"

[[rule]]
identity = "token:b"
max_module_bytes = "30MiB"
"""


def test_a_rule_says_how_large_the_modules_of_its_callers_may_be(tmp_path: Path) -> None:
    of: dict[str, Any] = {"policy": POLICY, "engines": [ENGINE]}
    with house(tmp_path / "state", MEMORY_BYTES="0", MAX_MODULE_BYTES="9MiB", **of) as at:
        callers = {}
        for who, token in at.tokens.items():
            callers[who] = Uploader(at.daemon)
            callers[who].metadata = (("authorization", f"Bearer {token}"),)
            told = callers[who].stub.GetCapabilities(
                pb.GetCapabilitiesRequest(), metadata=callers[who].metadata
            )
            most = {"a": 6, "b": 30, "ops": 9}[who] * MIB
            assert (told.caller.module_bytes, told.limits.module_bytes) == (most, 9 * MIB)
        medium, huge = large(8 * MIB), large(25 * MIB)
        for module, takers in ((medium, {"b", "ops"}), (huge, {"b"})):
            for who, caller in callers.items():
                if who in takers:
                    caller.upload(pieces(module)).result()
                    continue
                code, reason, told, _ = refused(caller.upload(pieces(module)))
                assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MODULE_TOO_LARGE")
                assert told["limit"] == ("policy" if who == "a" else "max_module_bytes")
        # Redis has it for them, too.
        token = at.tokens["ops"]
        pending = "redis_pending_writes"
        eventually(lambda: at.daemon.metric(pending, token=token) == 0, "it is not written")
        call = callers["b"].compile(wasm.digest(huge), metadata=callers["b"].metadata)
        assert header_of(call).module_sha256 == wasm.digest(huge)
        # So it is for the other calls.
        asked = pb.LoadRequest(module=medium, engine=ENGINE)
        callers["ops"].stub.Load(asked, metadata=callers["ops"].metadata)
        call = callers["a"].stub.Load.future(asked, metadata=callers["a"].metadata)
        assert refused(call)[2]["limit_bytes"] == str(6 * MIB)
        # What one caller uploads, another sees nothing of, whatever digest it knows.
        secret = large()
        with cut_at(callers["b"], secret, 0, MIB):
            assert callers["ops"].held(secret) == 0
            callers["ops"].upload(pieces(secret)).result()
            assert callers["b"].held(secret) == MIB
        for caller in callers.values():
            caller.channel.close()


@pytest.mark.parametrize("redis", [False, True])
def test_the_answer_says_whether_a_tier_keeps_the_module(tmp_path: Path, redis: bool) -> None:
    flags = ["--memory-bytes", "2MiB", *([] if redis else ["--redis-url", "none"])]
    with (
        Daemon(state_with(tmp_path / "state", ENGINE), flags) as daemon,
        Uploader(daemon) as caller,
    ):
        for module, fits in ((large(MIB), True), (large(3 * MIB), False)):
            asked = pb.LoadRequest(module=module, engine=ENGINE)
            kept = fits or redis
            for _ in range(2):
                assert caller.stub.Load(asked).kept == kept
                assert caller.upload(pieces(module)).result().loaded.kept == kept
            call = caller.compile(wasm.digest(module))
            if kept:
                assert header_of(call).module_sha256 == wasm.digest(module)
            else:
                assert failure_of(call)[1] == "MODULE_NOT_LOADED"


def test_a_reload_changes_how_much_uploads_may_fill(tmp_path: Path) -> None:
    with (
        Configured(state_with(tmp_path / "state", ENGINE), upload_bytes="2GiB") as at,
        Uploader(at.daemon) as caller,
        cut_at(caller, large(), 0, MIB),
    ):
        caller.upload(pieces(large())).result()
        at.write(upload_bytes="4MiB")
        at.reload()
        assert refused(caller.upload(pieces(large())))[2]["limit"] == "uploads"


@pytest.mark.parametrize("kind", ["directory", "moto"])
def test_a_module_of_100_mb_is_never_whole_in_memory(tmp_path: Path, kind: str) -> None:
    """Uploaded, validated, written to Redis and to an object store, and sent over HTTP."""
    state, module = state_with(tmp_path / "state", ENGINE), large(100_000_000)
    flags = ["--max-module-bytes", "128MiB", "--http-listen", "127.0.0.1:0"]
    with (
        KINDS_OF_OBJECT_STORES[kind](tmp_path / "store") as store,
        Daemon(state, flags, store.environment) as daemon,
        Uploader(daemon) as caller,
    ):
        caller.upload(pieces(wasm.adder(next(_tags)))).result()  # What is made at first use is.
        idle = daemon.memory("VmRSS")
        Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")  # VmHWM begins anew.
        caller.upload(pieces(module)).result()

        def written() -> bool:
            tiers = "redis", "object_store"
            return all(
                daemon.metric("tier_stores_total", tier=tier, outcome="ok") == 2 for tier in tiers
            )

        eventually(written, "it is not written to the tiers")
        digest = hashlib.sha256()
        with urllib.request.urlopen(
            f"http://{daemon.http}/v1/modules/{wasm.digest(module)}"
        ) as got:
            while piece := got.read(MIB):
                digest.update(piece)
        more = daemon.memory("VmHWM") - idle
        assert digest.hexdigest() == wasm.digest(module)
        assert header_of(caller.compile(wasm.digest(module))).size_bytes
        print(f"100 MB uploaded, with {kind}: at most {more / MIB:.1f} MiB more than idle")
        assert more <= 32 * MIB


def open_uploads(daemon: Daemon) -> int:
    """Return how many files of uploads the daemon has open."""
    found = 0
    for each in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += f"{daemon.state_dir}/uploads/" in str(each.readlink())
    return found
