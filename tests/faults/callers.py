"""Calls to one daemon, each timed, and each answer checked to the last byte."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import TracebackType

import grpc
from grpc import aio
from wasmkiln import Artifact, AttestationInvalid
from wasmkiln.attestation import TrustedKeys
from wasmkiln.v1 import admin_service_pb2 as admin_pb
from wasmkiln.v1 import admin_service_pb2_grpc, module_service_pb2_grpc, types_pb2
from wasmkiln.v1 import module_service_pb2 as pb

from tests.faults.material import CPU, ENGINE, Known

# A call that takes longer hangs: nothing here is large.
_DEADLINE_S = 60.0

REDIS = types_pb2.ORIGIN_REDIS
COMPILED = types_pb2.ORIGIN_COMPILED


@dataclass(frozen=True, slots=True)
class Call:
    """How one RPC went."""

    daemon: int
    sha256: str
    began_s: float
    seconds: float
    origin: int = 0
    work_s: float = 0.0
    """The time for compiling and for waiting for a worker."""
    upload_wanted: bool = False
    """The daemon answered that it does not know the module, as a caller by digest must expect."""
    failure: str = ""
    wrong: str = ""
    """What is wrong with the answer."""

    @property
    def ended_s(self) -> float:
        """When it ended, on the monotonic clock."""
        return self.began_s + self.seconds

    @property
    def waited_s(self) -> float:
        """How long it took apart from compiling."""
        return self.seconds - self.work_s


class Caller:
    """Calls one daemon from this event loop, and records every call."""

    def __init__(self, daemon: int, address: str, trusted: TrustedKeys) -> None:
        self.daemon = daemon
        self.calls: list[Call] = []
        self.fingerprint = ""
        self._trusted = trusted
        self._channel = aio.insecure_channel(address)
        self._modules = module_service_pb2_grpc.ModuleServiceStub(self._channel)
        self._admin = admin_service_pb2_grpc.AdminServiceStub(self._channel)

    async def compile(self, module: Known) -> Call:
        """Ask by digest, and with the module itself if that is wanted; return the last call."""
        call = await self._call(module, pb.CompileRequest(sha256=module.sha256))
        if call.upload_wanted:
            call = await self.upload(module)
        return call

    async def upload(self, module: Known) -> Call:
        """Ask with the module itself."""
        return await self._call(module, pb.CompileRequest(module=module.wasm))

    async def forget(self, module: Known) -> None:
        """Evict the module from the daemon's memory, so that the next call asks Redis."""
        request = admin_pb.EvictRequest(module_sha256=module.sha256, tier=admin_pb.TIER_MEMORY)
        await self._admin.Evict(request, timeout=_DEADLINE_S)

    async def stats(self) -> pb.StatsResponse:
        """Return the daemon's stats."""
        answer: pb.StatsResponse = await self._modules.Stats(pb.StatsRequest(), timeout=_DEADLINE_S)
        return answer

    async def _call(self, module: Known, request: pb.CompileRequest) -> Call:
        request.engine, request.cpu = ENGINE, CPU
        header, chunks = None, []
        began = time.monotonic()
        code = grpc.StatusCode.OK
        why = ""
        try:
            async for part in self._modules.Compile(request, timeout=_DEADLINE_S):
                if part.HasField("header"):
                    header = part.header
                    self.fingerprint = header.fingerprint
                else:
                    chunks.append(part.chunk)
        except aio.AioRpcError as error:
            code, why = error.code(), f"{error.code().name}: {error.details()}"
        call = Call(self.daemon, module.sha256, began, time.monotonic() - began)
        if code is grpc.StatusCode.NOT_FOUND and not request.module:
            call = replace(call, upload_wanted=True)
        elif header is None:
            call = replace(call, failure=why or "no header came")
        else:
            work_s = _seconds(header.compile_time) + _seconds(header.queue_time)
            call = replace(
                call,
                origin=header.origin,
                work_s=work_s if header.origin == COMPILED else 0.0,
                failure=why,
                wrong="" if why else self._wrong(module, header, b"".join(chunks)),
            )
        self.calls.append(call)
        return call

    def _wrong(self, module: Known, header: types_pb2.ArtifactHeader, artifact: bytes) -> str:
        if artifact != module.artifact:
            return f"{len(artifact)} bytes that are not the engine's own {len(module.artifact)}"
        if header.module_sha256 != module.sha256:
            return "the header is about another module"
        try:
            Artifact(artifact, header).verify(self._trusted)
        except AttestationInvalid as refusal:
            return f"the attestation: {refusal}"
        return ""

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()


def with_shared_work(calls: Iterable[Call]) -> list[Call]:
    """Return ``calls``, each with the work that another call did for it counted as its own.

    Who joins a flight, or waits for the other daemon to compile the same, waits for work.
    """
    compiles: dict[str, list[Call]] = defaultdict(list)
    calls = list(calls)
    for call in calls:
        if call.origin == COMPILED:
            compiles[call.sha256].append(call)
    return [
        replace(call, work_s=min(call.seconds, call.work_s + _shared_s(call, compiles)))
        for call in calls
    ]


def _shared_s(call: Call, compiles: dict[str, list[Call]]) -> float:
    shared = 0.0
    for other in compiles[call.sha256]:
        overlap = min(call.ended_s, other.ended_s) - max(call.began_s, other.began_s)
        if other is not call and overlap > 0:
            shared = max(shared, min(overlap, other.work_s))
    return shared


def _seconds(duration: object) -> float:
    return float(duration.ToTimedelta().total_seconds())  # type: ignore[attr-defined]
