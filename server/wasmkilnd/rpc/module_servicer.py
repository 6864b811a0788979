"""ModuleService, as the wire sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.compile_service import CompileService
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.calls import CallNote, Context

# What is larger was refused for its size, and hashing it would only hold others up.
_MAX_LOGGED_MODULE_BYTES = 8 * 1024 * 1024

RecordBytes = Callable[[int], None]


class ModuleServicer:
    """Translates; decides nothing."""

    def __init__(
        self,
        service: CompileService,
        stats: Callable[[], pb.StatsResponse],
        capabilities: Callable[[], pb.GetCapabilitiesResponse],
        sent: RecordBytes,
    ) -> None:
        self._service = service
        self._stats = stats
        self._capabilities = capabilities
        self._sent = sent
        self._headers = messages.HeaderFrames()

    async def load(
        self, request: pb.LoadRequest, context: Context, note: CallNote
    ) -> pb.LoadResponse:
        """Admit, validate and store a module."""
        note.engine = request.engine
        try:
            loaded = await self._service.load(
                request.module, request.expected_sha256, request.engine
            )
        except WasmkilnError:
            note.module = _digest_for_the_log(request.module)
            raise
        note.module, note.engine = loaded.module.sha256, loaded.engine_id
        return messages.load_response(loaded)

    async def compile(self, request: pb.CompileRequest, context: Context, note: CallNote) -> None:
        """Stream the header, then the artifact, both serialized before."""
        note.module, note.engine = request.sha256, request.engine
        try:
            served = await self._service.compile(messages.compile_order(request))
        except WasmkilnError:
            note.module = note.module or _digest_for_the_log(request.module)
            raise
        artifact = served.artifact
        note.module, note.engine = artifact.module_sha256, artifact.spec.engine.id
        note.origin, note.bytes = served.origin.value, artifact.size_bytes
        if served.queue_time_s:
            note.queue_ms = round(served.queue_time_s * 1e3, 3)
        note.compile_ms = round(artifact.compile_time_s * 1e3, 3)
        await context.write(self._headers.frame(served))
        if not request.omit_artifact:
            for frame in artifact.frames:
                await context.write(frame)
            self._sent(artifact.size_bytes)

    async def stats(
        self, request: pb.StatsRequest, context: Context, note: CallNote
    ) -> pb.StatsResponse:
        """Answer counters and percentiles."""
        return self._stats()

    async def get_capabilities(
        self, request: pb.GetCapabilitiesRequest, context: Context, note: CallNote
    ) -> pb.GetCapabilitiesResponse:
        """Answer what can be asked for."""
        return self._capabilities()

    async def find_missing(
        self, request: pb.FindMissingRequest, context: Context, note: CallNote
    ) -> pb.FindMissingResponse:
        """Answer those keys that no tier holds, as they were asked."""
        missing = await self._service.find_missing([messages.wanted(key) for key in request.keys])
        return pb.FindMissingResponse(missing=[request.keys[index] for index in missing])


def _digest_for_the_log(module: bytes) -> str:
    """Answer which module was refused, so that an operator can tell."""
    if not module or len(module) > _MAX_LOGGED_MODULE_BYTES:
        return ""
    return hashlib.sha256(module).hexdigest()
