"""Large modules and artifacts: in pieces, and over lines that break."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from wasmkiln.v1.module_service_pb2 import (
    CompileRequest,
    QueryUploadRequest,
    QueryUploadResponse,
)
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub

from tests.e2e import wasm
from tests.e2e.processes import eventually
from tests.e2e.programs import ROOT
from tests.faults.proxy import Line, Proxy
from tests.lying import honest
from tests.lying.server import Answer, LyingServer, lying_server
from tests.polyglot import builds
from tests.polyglot.builds import Asks, Words, said_in
from tests.polyglot.kiln import FULL_ENGINE, MAX_MODULE_BYTES, Kiln
from tests.polyglot.lies import chunk, header_first

pytestmark = pytest.mark.timeout(builds.BUILD_TIMEOUT_S)
SIZE = 16_000_000
# A download of that size is cut once; an upload stands still twice.
BREAKS = Line(stall_after_sent_bytes=6_000_000, cut_after_bytes=10_000_000)
HALF = len(honest.ARTIFACT) // 2


def large_module(kiln: Kiln, name: str) -> Path:
    """Return a module that goes in pieces, and whose artifact is as large."""
    path = kiln.folder / f"large-{name}.wasm"
    path.write_bytes(wasm.with_data(SIZE, sum(name.encode())))
    return path


def test_what_was_cut_goes_on(kiln: Kiln, asks: Asks, tmp_path: Path) -> None:
    """No more than a tenth of module and artifact goes over the line twice."""
    module, out = large_module(kiln, asks.language), tmp_path / "artifact"
    flags: Words = ["--key", kiln.key_file, "--engine", FULL_ENGINE, "--out", out]
    query = QueryUploadRequest(sha256=hashlib.sha256(module.read_bytes()).hexdigest())
    with (
        Proxy(int(kiln.address.rpartition(":")[2])) as proxy,
        grpc.insecure_channel(kiln.address) as channel,
    ):
        proxy.set(BREAKS)
        query_upload = ModuleServiceStub(channel).QueryUpload
        argv = list(map(str, [*asks.argv, f"127.0.0.1:{proxy.port}", module, *flags]))
        with subprocess.Popen(argv, stdout=PIPE, text=True, cwd=ROOT) as running:
            for due in (5_500_000, 11_000_000):

                def has_arrived(due: int = due) -> bool:
                    return query_upload(query).held_bytes > due or running.poll() is not None

                eventually(has_arrived, "too little arrives")
                proxy.cut()
            output, _ = running.communicate(timeout=120)
        [said] = said_in(output)
        assert said.what == "compiled", said
        assert proxy.cuts == 1
        assert proxy.sent_bytes <= 1.1 * SIZE
        assert proxy.received_bytes <= 1.1 * out.stat().st_size
    with kiln.daemon.client() as client:
        assert out.read_bytes() == client.compile(module, engine=FULL_ENGINE).bytes
    loaded = asks.once(kiln.address, module, "--engine", FULL_ENGINE, "--load", "yes")
    assert loaded.what == "loaded"


def test_callers_that_send_one_module_at_once(kiln: Kiln, asks: Asks) -> None:
    module = large_module(kiln, f"{asks.language} at once")
    argv = list(map(str, [*asks.argv, kiln.address, module, "--engine", FULL_ENGINE]))
    running = [subprocess.Popen(argv, stdout=PIPE, text=True, cwd=ROOT) for _ in range(3)]
    outputs = [each.communicate(timeout=120)[0] for each in running]
    assert [each.what for output in outputs for each in said_in(output)] == ["compiled"] * 3


def test_a_module_above_the_limit(kiln: Kiln, asks: Asks, tmp_path: Path) -> None:
    module = tmp_path / "module"
    with module.open("wb") as file:
        file.truncate(MAX_MODULE_BYTES + 1)
    assert asks.once(kiln.address, module).what == "MODULE_TOO_LARGE"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is so large that it goes in pieces."""
    path = tmp_path_factory.mktemp("large") / "module"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def liar() -> Iterator[LyingServer]:
    """A daemon that lacks every module at first, and has it when it is asked again."""
    lacking = iter([_refusing(grpc.StatusCode.NOT_FOUND, "MODULE_NOT_LOADED")])
    with lying_server() as liar:
        compiled = honest.HONEST["Compile"]
        liar.answers["Compile"] = lambda *call: next(lacking, compiled)(*call)
        _hold(liar, 0, 0, 0)
        yield liar


def _refusing(code: grpc.StatusCode, reason: str = "") -> Answer:
    packed = Packed()
    packed.Pack(ErrorInfo(reason=reason, domain="wasmkiln"))
    details = Status(code=code.value[0], details=[packed] if reason else []).SerializeToString()

    def refuse(_request: bytes, context: Any) -> Iterator[bytes]:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(code, "cannot")
        yield b""

    return refuse


def _hold(liar: LyingServer, *held_bytes: int) -> None:
    upcoming = iter(held_bytes)
    liar.answers["QueryUpload"] = lambda *_: iter(
        [QueryUploadResponse(held_bytes=next(upcoming)).SerializeToString()]
    )


@pytest.mark.parametrize("method", ["QueryUpload", "Upload"])
def test_a_daemon_without_uploads(liar: LyingServer, asks: Asks, large: Path, method: str) -> None:
    liar.answers[method] = _refusing(grpc.StatusCode.UNIMPLEMENTED)
    assert asks.once(liar.address, large).what == "compiled"
    uploading = ["QueryUpload", "Upload"][: 1 + (method == "Upload")]
    assert liar.calls == ["Compile", *uploading, "Load", "Compile"]
    assert asks.once(liar.address, large, "--load", "yes").what == "loaded"


def test_a_module_that_no_tier_keeps_comes_with_the_request(
    liar: LyingServer, asks: Asks, large: Path
) -> None:
    lacking = _refusing(grpc.StatusCode.NOT_FOUND, "MODULE_NOT_LOADED")
    upcoming = iter([lacking, lacking, honest.HONEST["Compile"]])
    liar.answers["Compile"] = lambda *call: next(upcoming)(*call)
    assert asks.once(liar.address, large).what == "compiled"
    assert liar.calls == ["Compile", "QueryUpload", "Upload", "Compile", "Compile"]


def test_an_upload_that_gets_no_further_ends_with_its_time(
    liar: LyingServer, asks: Asks, large: Path
) -> None:
    liar.answers["Compile"] = _refusing(grpc.StatusCode.NOT_FOUND, "MODULE_NOT_LOADED")
    liar.answers["Upload"] = _refusing(grpc.StatusCode.UNAVAILABLE)
    _hold(liar, 0, 1_000_000, *[2_000_000] * 100)
    said = asks.once(liar.address, large, "--timeout-ms", "2500")
    assert said.what == "CONNECTION_FAILED"
    assert set(liar.calls) == {"Compile", "QueryUpload", "Upload"}
    assert liar.calls.count("Upload") > 4


def test_another_call_takes_an_upload_over(liar: LyingServer, asks: Asks, large: Path) -> None:
    liar.answers["Upload"] = _refusing(grpc.StatusCode.ABORTED, "UPLOAD_INTERRUPTED")
    assert asks.once(liar.address, large).what == "compiled"
    assert liar.calls == ["Compile", "QueryUpload", "Upload", "Compile"]
    upcoming = iter([liar.answers.pop("Upload"), _refusing(grpc.StatusCode.INTERNAL, "INTERNAL")])
    liar.answers["Upload"] = lambda *call: next(upcoming)(*call)
    assert asks.once(liar.address, large, "--load", "yes").what == "INTERNAL"
    assert liar.calls[4:] == ["QueryUpload", "Upload"] * 2


def test_an_upload_of_another_module(liar: LyingServer, asks: Asks, large: Path) -> None:
    _hold(liar, 0, SIZE, SIZE + 1, 2**63, 2**64 - 1)
    said = asks(liar.address, large, "--load", "yes", "--times", "5")
    assert [each.what for each in said] == ["UNEXPECTED_ANSWER"] * 5


def _part(request: CompileRequest, begin: int, count: int, **changes: Any) -> Answer:
    """Return an answer with so many bytes of the artifact; if that is not the last, it is cut."""
    header = header_first(honest.header(request), offset_bytes=begin, **changes)

    def answer(_request: bytes, context: Any) -> Iterator[bytes]:
        yield from [header, chunk(honest.ARTIFACT[begin : begin + count])]
        if begin + count < len(honest.ARTIFACT):
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    return answer


def test_the_rest_of_an_artifact(asks: Asks, large: Path) -> None:
    """It may come whole instead; another rest is a lie, and none ends the call."""
    rests: list[tuple[int, int, dict[str, Any], str]] = [
        (HALF, HALF, {}, "compiled"),
        (0, 2 * HALF, {}, "compiled"),
        (HALF - 1, HALF + 1, {}, "ARTIFACT_MISMATCH"),
        (HALF, HALF, {"artifact_sha256": "0" * 64}, "ARTIFACT_MISMATCH"),
        (HALF, HALF, {"size_bytes": HALF}, "ARTIFACT_MISMATCH"),
        (HALF, HALF, {"size_bytes": 1}, "ARTIFACT_MISMATCH"),
    ]
    asked: list[tuple[int, str]] = []

    def answer(message: bytes, context: Any) -> Iterator[bytes]:
        request = CompileRequest.FromString(message)
        asked.append((request.offset_bytes, request.artifact_sha256))
        begin, count, changes, _ = (
            (0, HALF, {}, "") if len(asked) % 2 else rests[len(asked) // 2 - 1]
        )
        return _part(request, begin, count, **changes)(message, context)

    with lying_server() as liar:
        liar.answers["Compile"] = answer
        said = asks(liar.address, large, "--times", str(len(rests)))
    assert [each.what for each in said] == [due for *_, due in rests]
    assert asked == [(0, ""), (HALF, honest.header().artifact_sha256)] * len(rests)


def test_a_module_that_is_gone_when_a_download_goes_on(
    liar: LyingServer, asks: Asks, large: Path
) -> None:
    asked: list[CompileRequest] = []

    def answer(message: bytes, context: Any) -> Iterator[bytes]:
        asked.append(request := CompileRequest.FromString(message))
        lacking = _refusing(grpc.StatusCode.NOT_FOUND, "MODULE_NOT_LOADED")
        answers = [_part(request, 0, HALF), lacking, honest.HONEST["Compile"]]
        return answers[len(asked) - 1](message, context)

    liar.answers["Compile"] = answer
    assert asks.once(liar.address, large).what == "compiled"
    assert all(bool(each.offset_bytes) == bool(each.artifact_sha256) for each in asked)
    assert [bool(each.offset_bytes) for each in asked[:2]] == [False, True]


@pytest.mark.parametrize("asks", ["java"], indirect=True)
def test_an_upload_is_not_held_twice(kiln: Kiln, asks: Asks) -> None:
    """The heap has room for the module, and for no copy of it in buffers."""
    module = large_module(kiln, "streamed")
    java, *words = asks.argv
    flags = ["-Xmx32m", "-Dio.netty.noPreferDirect=true", "-Dio.netty.allocator.type=unpooled"]
    small = Asks("java", [java, *flags, *words])
    assert small.once(kiln.address, module, "--load", "yes").what == "loaded"
