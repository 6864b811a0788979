"""The RPCs of ModuleService: translates requests and results, and decides nothing.

One method per RPC: it takes a request and the ``Call`` (caller, priority, request id), translates
the request, calls a service of its tenant, notes in the call what its log line tells, and returns a
message, serialized bytes, or a ``SerializedAnswer``. It raises ``WasmkilnError`` for what the
caller has to know. Counting, logging, limits and errors are those of ``rpc.calls``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.compile import Request, Tenant, Terms
from wasmkilnd.model import CacheKey, Role
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.traffic import Call
from wasmkilnd.rpc.upload import Read, Uploads


class ModuleServicer:
    """Implements ModuleService."""

    def __init__(
        self,
        tenant_of: Callable[[str], Tenant],
        stats: Callable[[str], pb.StatsResponse],
        capabilities: Callable[[], messages.Capabilities],
        uploads: Uploads,
    ) -> None:
        """``tenant_of`` and ``stats`` take the namespace of a caller.

        What serves that namespace is the one way to any cache or service.
        """
        self._tenant_of = tenant_of
        self._stats = stats
        self._capabilities = capabilities
        self._uploads = uploads
        self._told: messages.Capabilities | None = None
        # The serialized response of GetCapabilities for what was ``told`` last.
        self._answer = b""
        self._headers = messages.Headers()

    async def load(self, request: pb.LoadRequest, call: Call) -> pb.LoadResponse:
        """Admit, validate and store a module."""
        messages.bound("engine", len(request.engine.encode()), messages.MAX_NAME_BYTES)
        call.engine = request.engine
        sent = request.expected_sha256, request.module, request.engine
        wanted = Request(*sent, terms=_terms(call))
        del request, sent  # The call may wait long, and one copy of the module is enough.
        return await self._load(wanted, call)

    async def upload(self, read: Read, call: Call) -> pb.UploadResponse:
        """Take a module in pieces, then do what ``load`` does."""
        compiler, terms = self._tenant_of(call.identity.namespace).compiler, _terms(call)
        expect = partial(compiler.expect, terms=terms)
        async with self._uploads.take(read, call, expect) as (sha256, wasm):
            wanted = Request(sha256, wasm, call.engine, terms=terms)
            return pb.UploadResponse(loaded=await self._load(wanted, call))

    async def query_upload(
        self, request: pb.QueryUploadRequest, call: Call
    ) -> pb.QueryUploadResponse:
        """Return how much the daemon holds of a module that is being uploaded."""
        held_bytes = self._uploads.held_bytes(request.sha256, call)
        call.module = request.sha256
        return pb.QueryUploadResponse(held_bytes=held_bytes)

    async def _load(self, wanted: Request, call: Call) -> pb.LoadResponse:
        try:
            loaded = await self._tenant_of(call.identity.namespace).compiler.load(wanted)
        finally:
            call.module = wanted.sha256
        call.engine = loaded.engine_id
        return messages.load_response(loaded)

    async def compile(self, request: messages.CompileCall, call: Call) -> messages.SerializedAnswer:
        """Return the header and the artifact, both serialized."""
        asked, how, waiter = request.asked, request.how, call.waiter
        call.engine, call.about["uploaded"] = asked.engine, bool(asked.wasm)
        tenant = self._tenant_of(call.identity.namespace)
        call.module = asked.sha256
        if not (served := tenant.compiler.hit(asked)):
            hits_only = Role.COMPILE not in call.identity.roles
            wanted = replace(asked, hits_only=hits_only, terms=_terms(call))
            del request, asked  # The call may wait long, and one copy of the module is enough.
            try:
                served = await tenant.compiler.compile(wanted)
            finally:
                call.module = wanted.sha256
        artifact = served.artifact
        if not waiter.background:
            tenant.tally[artifact.module_sha256, artifact.spec] += 1
        call.engine = artifact.spec.engine.id
        call.origin, call.bytes = served.origin.value, artifact.size_bytes
        if served.queue_time_s:
            call.queue_ms = round(served.queue_time_s * 1e3, 3)
        call.compile_ms = round(artifact.compile_time_s * 1e3, 3)
        return self._headers.answer(served, *how)

    async def stats(self, request: pb.StatsRequest, call: Call) -> pb.StatsResponse:
        """Return counters and latencies."""
        return self._stats(call.identity.namespace)

    async def get_capabilities(self, request: pb.GetCapabilitiesRequest, call: Call) -> bytes:
        """Return the engines and limits of the daemon: one answer until they change."""
        told = self._capabilities()
        if told != self._told:
            self._told, self._answer = told, messages.capabilities(told).SerializeToString()
        who = messages.caller(call.identity, told.limits.module_bytes)
        caller = pb.GetCapabilitiesResponse(caller=who)
        return self._answer + caller.SerializeToString()

    async def find_missing(self, request: bytes, call: Call) -> bytes:
        """Return the keys that no tier holds, as the caller sent them.

        They are found, parsed and looked up in slices.
        """
        sent: list[slice] = []
        terms = _terms(call)

        def wanted() -> Iterator[CacheKey | Request]:
            for start, value, end in messages.keys(request):
                sent.append(slice(start, end))
                yield messages.wanted(request[value:end], terms)

        missing = await self._tenant_of(call.identity.namespace).compiler.find_missing(wanted())
        # Keys have the same number in the answer.
        return b"".join(request[sent[index]] for index in missing)


def _terms(call: Call) -> Terms:
    return Terms(call.waiter, call.release_request, call.quota, call.identity.module_bytes)
