"""ModuleService, as the wire sees it."""

from __future__ import annotations

from collections.abc import Callable

from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.compile_service import CompileService
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.calls import CallNote, Context

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
        loaded = await self._service.load(request.module, request.expected_sha256, request.engine)
        note.module, note.engine = loaded.module.sha256, loaded.engine_id
        return messages.load_response(loaded)

    async def compile(self, request: pb.CompileRequest, context: Context, note: CallNote) -> None:
        """Stream the header, then the artifact, both serialized before."""
        note.module = request.sha256
        served = await self._service.compile(messages.compile_order(request))
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
