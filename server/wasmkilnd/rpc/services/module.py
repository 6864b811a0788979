"""The RPCs of ModuleService: translates requests and results, and decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from google.protobuf.message import DecodeError
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Role
from wasmkilnd.requests import CompileRequest, LoadRequest, Terms, WantedArtifact
from wasmkilnd.rpc.traffic import Call
from wasmkilnd.rpc.wire import messages
from wasmkilnd.rpc.wire.capabilities import caller_message
from wasmkilnd.rpc.wire.headers import Headers, SerializedAnswer
from wasmkilnd.rpc.wire.messages import CompileCall
from wasmkilnd.rpc.wire.parts import Parts, repeated
from wasmkilnd.rpc.wire.requests import not_a_message
from wasmkilnd.tenant import Tenant
from wasmkilnd.waiters import Waiter


class ModuleServicer:
    """Implements ModuleService."""

    def __init__(
        self,
        tenant_of: Callable[[str], Tenant],
        stats: Callable[[str], pb.StatsResponse],
        capabilities: Callable[[], pb.GetCapabilitiesResponse],
    ) -> None:
        """``tenant_of`` and ``stats`` take the namespace of a caller."""
        self._tenant_of = tenant_of
        self._stats = stats
        self._capabilities = capabilities
        self._headers = Headers()

    async def load(self, request: pb.LoadRequest, call: Call) -> pb.LoadResponse:
        """Admit, validate and store a module."""
        call.engine = request.engine
        wanted = messages.load_request(request, _terms(call))
        del request  # The call may wait long, and one copy of the module is enough.
        try:
            loaded = await self._tenant(call).modules.load(wanted)
        except (WasmkilnError, asyncio.CancelledError) as failure:
            call.module = _refused_module(wanted, failure)
            raise
        call.module, call.engine = loaded.module.sha256, loaded.engine_id
        return messages.load_response(loaded)

    async def compile(self, request: CompileCall, call: Call) -> SerializedAnswer:
        """Return the header and the artifact, both serialized."""
        call.module, call.engine = request.sha256, request.engine
        omit_artifact, inline_limit_bytes = request.omit_artifact, request.inline_limit_bytes
        wanted = request.request(_terms(call))
        del request  # The call may wait long, and one copy of the module is enough.
        call.about["uploaded"] = bool(wanted.wasm)
        if Role.COMPILE not in call.identity.roles:
            wanted.restrict_to_hits()
        tenant = self._tenant(call)
        try:
            served = await tenant.service.compile(wanted)
        except (WasmkilnError, asyncio.CancelledError) as failure:
            call.module = _refused_module(wanted, failure)
            raise
        artifact = served.artifact
        if not wanted.terms.waiter.background:
            if (key := artifact.key) in tenant.tally.counts:  # See Tally.
                tenant.tally.counts[key] += 1
            else:
                tenant.tally.begin(artifact)
        call.module, call.engine = artifact.module_sha256, artifact.spec.engine.id
        call.origin, call.bytes = served.origin.value, artifact.size_bytes
        if served.queue_time_s:
            call.queue_ms = round(served.queue_time_s * 1e3, 3)
        call.compile_ms = round(artifact.compile_time_s * 1e3, 3)
        return self._headers.answer(
            served, omit_artifact=omit_artifact, inline_limit_bytes=inline_limit_bytes
        )

    async def stats(self, request: pb.StatsRequest, call: Call) -> pb.StatsResponse:
        """Return counters and latencies."""
        return self._stats(call.identity.namespace)

    async def get_capabilities(
        self, request: pb.GetCapabilitiesRequest, call: Call
    ) -> pb.GetCapabilitiesResponse:
        """Return the engines and limits of the daemon."""
        answer = self._capabilities()
        answer.caller.CopyFrom(caller_message(call.identity))
        return answer

    async def find_missing(self, keys: Parts, call: Call) -> bytes:
        """Return the keys that no tier holds, as the caller sent them."""
        missing = await self._tenant(call).modules.find_missing(map(_wanted, keys))
        return await repeated(
            pb.FindMissingResponse.MISSING_FIELD_NUMBER, (keys[index] for index in missing)
        )

    def _tenant(self, call: Call) -> Tenant:
        """Return what serves the caller's namespace: the one way to any cache or service."""
        return self._tenant_of(call.identity.namespace)


def _wanted(key: bytes) -> WantedArtifact:
    """Parse a serialized ArtifactKey. Raises INVALID_REQUEST."""
    try:
        return messages.wanted(types_pb2.ArtifactKey.FromString(key))
    except DecodeError:
        raise not_a_message() from None


def _terms(call: Call) -> Terms:
    """Return a call's priority, deadline and release function. Raises INVALID_REQUEST."""
    left_s = call.context.time_remaining()
    return Terms(
        Waiter(call.caller, call.background),
        None if left_s is None else asyncio.get_running_loop().time() + left_s,
        call.release_request,
        call.account,
    )


def _refused_module(wanted: CompileRequest | LoadRequest, failure: BaseException) -> str:
    """Return the digest of a refused module for the log line, if admission computed it.

    Admission does not hash bytes that are no module, or too large.
    """
    metadata = failure.metadata if isinstance(failure, WasmkilnError) else {}
    return wanted.sha256 or metadata.get("actual_sha256", "")
