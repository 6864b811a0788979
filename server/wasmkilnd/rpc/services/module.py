"""ModuleService, as the wire sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from google.protobuf.message import DecodeError
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

from wasmkilnd.compile_service import CompileService
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.module_service import ModuleService
from wasmkilnd.requests import CompileRequest, LoadRequest, Terms, WantedArtifact
from wasmkilnd.rpc.connections.call import Call, Frames
from wasmkilnd.rpc.wire import messages
from wasmkilnd.rpc.wire.parts import Parts, repeated
from wasmkilnd.rpc.wire.requests import not_a_message
from wasmkilnd.waiters import Waiter


class ModuleServicer:
    """Translates; decides nothing."""

    def __init__(
        self,
        service: CompileService,
        modules: ModuleService,
        stats: Callable[[], pb.StatsResponse],
        capabilities: Callable[[], pb.GetCapabilitiesResponse],
    ) -> None:
        self._service = service
        self._modules = modules
        self._stats = stats
        self._capabilities = capabilities
        self._headers = messages.HeaderFrames()

    async def load(self, request: pb.LoadRequest, call: Call) -> pb.LoadResponse:
        """Admit, validate and store a module."""
        call.engine = request.engine
        order = messages.load_order(request, _terms(call))
        del request  # It may wait long, and one copy of the module is enough.
        try:
            loaded = await self._modules.load(order)
        except WasmkilnError as failure:
            call.module = _refused_module(order, failure)
            raise
        call.module, call.engine = loaded.module.sha256, loaded.engine_id
        return messages.load_response(loaded)

    async def compile(self, request: pb.CompileRequest, call: Call) -> Frames:
        """Return the header, then the artifact, both serialized before."""
        call.module, call.engine = request.sha256, request.engine
        omit_artifact = request.omit_artifact
        order = messages.compile_order(request, _terms(call))
        del request  # It may wait long, and one copy of the module is enough.
        try:
            served = await self._service.compile(order)
        except WasmkilnError as failure:
            call.module = _refused_module(order, failure)
            raise
        artifact = served.artifact
        call.module, call.engine = artifact.module_sha256, artifact.spec.engine.id
        call.origin, call.bytes = served.origin.value, artifact.size_bytes
        if served.queue_time_s:
            call.queue_ms = round(served.queue_time_s * 1e3, 3)
        call.compile_ms = round(artifact.compile_time_s * 1e3, 3)
        return Frames(self._headers.frame(served), None if omit_artifact else artifact)

    async def stats(self, request: pb.StatsRequest, call: Call) -> pb.StatsResponse:
        """Return counters and percentiles."""
        return self._stats()

    async def get_capabilities(
        self, request: pb.GetCapabilitiesRequest, call: Call
    ) -> pb.GetCapabilitiesResponse:
        """Return what can be asked for."""
        return self._capabilities()

    async def find_missing(self, keys: Parts, call: Call) -> bytes:
        """Return those keys that no tier holds, as they were asked."""
        missing = await self._modules.find_missing(map(_wanted, keys))
        return await repeated(
            pb.FindMissingResponse.MISSING_FIELD_NUMBER, (keys[index] for index in missing)
        )


def _wanted(key: bytes) -> WantedArtifact:
    """Return what a serialized ArtifactKey asks about. Raises INVALID_REQUEST."""
    try:
        return messages.wanted(types_pb2.ArtifactKey.FromString(key))
    except DecodeError:
        raise not_a_message() from None


def _terms(call: Call) -> Terms:
    """Return on what terms a call is served. Raises INVALID_REQUEST."""
    left_s = call.context.time_remaining()
    return Terms(
        Waiter(call.caller, call.background),
        None if left_s is None else asyncio.get_running_loop().time() + left_s,
        call.release_request,
    )


def _refused_module(order: CompileRequest | LoadRequest, failure: WasmkilnError) -> str:
    """Return which module was refused, so that an operator can tell, if admission found out.

    What is no module, or too large for one, is not worth hashing.
    """
    return order.sha256 or failure.metadata.get("actual_sha256", "")
