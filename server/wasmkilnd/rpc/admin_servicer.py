"""AdminService, as the wire sees it."""

from __future__ import annotations

from wasmkiln.v1 import admin_service_pb2 as pb

from wasmkilnd.compile_service import CompileService
from wasmkilnd.errors import invalid_request
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.calls import CallNote, Context


class AdminServicer:
    """Translates; decides nothing."""

    def __init__(self, service: CompileService) -> None:
        self._service = service

    async def evict(
        self, request: pb.EvictRequest, context: Context, note: CallNote
    ) -> pb.EvictResponse:
        """Evict what the request names."""
        if request.tier not in messages.TIERS:
            raise invalid_request("no such tier: use TIER_MEMORY or TIER_REDIS", "tier")
        note.module, note.engine = request.module_sha256, request.engine
        evicted, unreachable = await self._service.evict(
            messages.evict_scope(request), messages.TIERS[request.tier]
        )
        return pb.EvictResponse(
            artifacts=evicted.artifacts,
            modules=evicted.modules,
            bytes=evicted.bytes,
            unreachable_tiers=unreachable,
        )
