"""The server that a memory hit is compared with: it holds bytes, and sends them in two ways.

``python -m bench.bare FILE`` prints its port and serves. Messages of 512 KiB and asyncio were the
fastest of grpcio's ways to send 2.6 MB in every run that compared them. For 15 KB a unary answer,
which grpcio sends together with the status, costs less.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

METHODS = {
    "bare grpcio (asyncio)": "/bench.Bare/Get",
    "bare grpcio, a unary answer": "/bench.Bare/GetWhole",
}

_CHUNK_BYTES = 512 * 1024


async def main(data: bytes) -> None:
    """Serve until ended."""
    chunks = [data[at : at + _CHUNK_BYTES] for at in range(0, len(data), _CHUNK_BYTES)]

    async def get(_: bytes, context: Any) -> None:
        for chunk in chunks:
            await context.write(chunk)

    async def get_whole(_: bytes, __: Any) -> bytes:
        return data

    # Neither side serializes: the chunks are messages already.
    handlers = {
        "Get": grpc.unary_stream_rpc_method_handler(get),
        "GetWhole": grpc.unary_unary_rpc_method_handler(get_whole),
    }
    server = aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_bytes()))
