"""The RPCs of AdminService: translates requests and results, and decides nothing.

Its methods are what those of ``rpc.module_service`` are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import starmap

from wasmkiln.v1 import admin_service_pb2 as pb

from wasmkilnd.compile import Tenant, check_sha256
from wasmkilnd.engines.pool import Job
from wasmkilnd.errors import invalid_request
from wasmkilnd.model import DrainState
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.traffic import Call


class AdminServicer:
    """Implements AdminService."""

    def __init__(
        self,
        tenant_of: Callable[[str], Tenant],
        jobs: Callable[[str], Iterator[tuple[str, str, Job]]],
        drain: Callable[[float | None], DrainState],
        undo_drain: Callable[[], bool],
    ) -> None:
        """``tenant_of`` takes a namespace, and ``jobs`` that of an operator."""
        self._tenant_of, self._jobs = tenant_of, jobs
        self._drain, self._undo_drain = drain, undo_drain

    async def evict(self, request: pb.EvictRequest, call: Call) -> pb.EvictResponse:
        """Evict artifacts and modules from one tier, or from all."""
        scope, tier = messages.evict_scope(request)
        call.module, call.engine = scope.module_sha256, scope.engine_id
        call.about["tier"] = tier or "all"
        tenant = self._tenant(call)
        scope = await tenant.pins.sparing(scope)
        evicted, unreachable = await tenant.compiler.cache.evict(scope, tier)
        call.about |= {"artifacts": evicted.artifacts, "modules": evicted.modules}
        return messages.filled(pb.EvictResponse, evicted, unreachable_tiers=unreachable)

    async def list_quarantine(self, request: pb.ListQuarantineRequest, call: Call) -> bytes:
        """List the modules in quarantine."""
        strikes = await self._tenant(call).quarantine.listed()
        return await messages.repeated(map(messages.quarantined_module, strikes))

    async def release_quarantine(
        self, request: pb.ReleaseQuarantineRequest, call: Call
    ) -> pb.ReleaseQuarantineResponse:
        """Release one module from quarantine, or all."""
        if request.WhichOneof("scope") == "module_sha256":
            call.module = check_sha256(request.module_sha256, "module_sha256")
        elif not request.all:
            raise invalid_request("cannot release: set module_sha256, or all to true", "scope")
        released, reached_redis = await self._tenant(call).quarantine.release(request.module_sha256)
        call.about["released"] = released
        return pb.ReleaseQuarantineResponse(released=released, redis_unreachable=not reached_redis)

    async def list_jobs(self, request: pb.ListJobsRequest, call: Call) -> bytes:
        """List the jobs that run or wait."""
        jobs = [*self._jobs(call.identity.namespace)]  # They change while this is made of them.
        return await messages.repeated(starmap(messages.job, jobs))

    async def end_job(self, request: pb.EndJobRequest, call: Call) -> pb.EndJobResponse:
        """End a job."""
        jobs = self._jobs(call.identity.namespace)
        found = next((each for each in jobs if each[2].id == request.id), None)
        call.about |= {"job": request.id, "ended": bool(found)}
        if not found:
            return pb.EndJobResponse()
        _, call.engine, job = found
        call.module, told = job.order.module_sha256, messages.job(*found)
        job.end()
        return pb.EndJobResponse(job=told)

    async def pin(self, request: pb.PinRequest, call: Call) -> pb.PinResponse:
        """Pin a module."""
        call.module = check_sha256(request.module_sha256, "module_sha256")
        pin, reached_redis = await self._tenant(call).pins.pin(request.module_sha256)
        return pb.PinResponse(pin=messages.pin(pin), redis_unreachable=not reached_redis)

    async def unpin(self, request: pb.UnpinRequest, call: Call) -> pb.UnpinResponse:
        """Unpin a module."""
        call.module = check_sha256(request.module_sha256, "module_sha256")
        removed, reached_redis = await self._tenant(call).pins.unpin(request.module_sha256)
        call.about["removed"] = int(removed)
        return pb.UnpinResponse(removed=removed, redis_unreachable=not reached_redis)

    async def list_pins(self, request: pb.ListPinsRequest, call: Call) -> bytes:
        """List the pins."""
        return await messages.repeated(map(messages.pin, await self._tenant(call).pins.listed()))

    async def drain(self, request: pb.DrainRequest, call: Call) -> pb.DrainResponse:
        """Start to shut the daemon down, and return what it still waits for."""
        grace_s = messages.seconds(request.grace, "grace") if request.HasField("grace") else None
        state = self._drain(grace_s)
        return messages.filled(pb.DrainResponse, state, grace=messages.duration(state.left_s))

    async def undo_drain(self, request: pb.UndoDrainRequest, call: Call) -> pb.UndoDrainResponse:
        """Have a daemon that drains accept calls again."""
        call.about["undone"] = undone = self._undo_drain()
        return pb.UndoDrainResponse(undone=undone)

    def _tenant(self, call: Call) -> Tenant:
        """Return what serves the caller's namespace."""
        return self._tenant_of(call.identity.namespace)
