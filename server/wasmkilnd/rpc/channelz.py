"""channelz as grpcio serves it, with answers of a bounded size."""

from __future__ import annotations

from typing import Any

from grpc_channelz.v1 import channelz

# Each becomes text and is read again: 1,000 hold the event loop for some 7 ms.
_MAX_SOCKETS = 500


class Channelz(channelz.aio.ChannelzServicer):  # type: ignore[misc]  # grpcio ships no types
    """Tells of the server's connections."""

    @staticmethod
    async def GetServerSockets(request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        """Answer sockets, 500 at most; the protocol has its callers ask on from there."""
        if not 0 < request.max_results <= _MAX_SOCKETS:
            request.max_results = _MAX_SOCKETS
        return await channelz.aio.ChannelzServicer.GetServerSockets(request, context)
