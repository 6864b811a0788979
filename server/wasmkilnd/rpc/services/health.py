"""grpc.health.v1: whether the daemon serves calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from wasmkilnd.errors import quoted
from wasmkilnd.rpc.wire.contract import message_class

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_SERVICE = "grpc.health.v1.Health"
_ListRequest = message_class("grpc.health.v1.HealthListRequest")
_ListResponse = message_class("grpc.health.v1.HealthListResponse")


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpcio ships no types
    """The health of the daemon, the same for each service. For one event loop.

    grpcio-health-checking's own servicer forgets every other watcher of a service
    when one of them leaves, and waits for the slowest when the health changes. It has no List.
    """

    def __init__(self, server: Any, services: Sequence[str]) -> None:
        self._names = frozenset(("", *services))
        self._serving = False
        # Set at the next change, and then replaced. A watcher waits for the event that was current
        # when it read the status, so that it misses no change.
        self._changed = asyncio.Event()
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
        listing = grpc.unary_unary_rpc_method_handler(
            self.List,
            request_deserializer=_ListRequest.FromString,
            response_serializer=_ListResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, {"List": listing}),)
        )

    def set(self, serving: bool) -> None:
        """Set the health, and tell watchers."""
        if serving != self._serving:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        """Return the health of a service."""
        if request.service not in self._names:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"unknown service {quoted(request.service)}"
            )
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        """Return the health of every service that Check knows."""
        response = _ListResponse()
        for name in sorted(self._names):
            response.statuses[name].status = self._status(name)
        return response

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the RPC's name
        """Send the health of a service now, and at each change."""
        sent = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != sent:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                sent = status
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._names:
            return SERVICE_UNKNOWN  # type: ignore[no-any-return]
        return SERVING if self._serving else NOT_SERVING  # type: ignore[no-any-return]
