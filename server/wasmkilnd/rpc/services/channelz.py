"""channelz as grpcio serves it, with responses of a bounded size."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import json_format
from grpc._cython import cygrpc
from grpc_channelz.v1 import channelz, channelz_pb2

# Each is serialized to JSON and parsed again: 1,000 block the event loop for some 7 ms.
_MAX_SOCKETS = 500


class Channelz(channelz.aio.ChannelzServicer):  # type: ignore[misc]  # grpcio ships no types
    """Describes the server's connections."""

    @staticmethod
    async def GetServerSockets(request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        """Return at most 500 sockets. By the protocol a caller asks again for the rest."""
        if not 0 < request.max_results <= _MAX_SOCKETS:
            request.max_results = _MAX_SOCKETS
        return await channelz.aio.ChannelzServicer.GetServerSockets(request, context)

    @staticmethod
    async def GetSocket(request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        """Return one socket; ignore unknown fields.

        grpcio-channelz 1.81 fails at a field that grpcio 1.85 added.
        """
        try:
            found = cygrpc.channelz_get_socket(request.socket_id)
        except ValueError as absent:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(absent))
        answer = channelz_pb2.GetSocketResponse()
        return json_format.Parse(found, answer, ignore_unknown_fields=True)
