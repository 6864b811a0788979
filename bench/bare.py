"""The servers that a memory hit is compared with: they hold bytes, and send them.

``python -m bench.bare asyncio|threads|tcp FILE CHUNK_BYTES`` prints its port and serves.
"""

from __future__ import annotations

import asyncio
import socketserver
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

METHOD = "/bench.Bare/Get"

_SERVICE, _NAME = METHOD.strip("/").split("/")
_OPTIONS = (("grpc.max_send_message_length", -1),)
_THREADS = 4


def _handler(behavior: Any) -> Any:
    # Neither side serializes: the chunks are messages already.
    handler = grpc.unary_stream_rpc_method_handler(behavior)
    return grpc.method_handlers_generic_handler(_SERVICE, {_NAME: handler})


async def _serve_asyncio(chunks: list[bytes]) -> None:
    async def get(request: bytes, context: Any) -> None:
        for chunk in chunks:
            await context.write(chunk)

    server = aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((_handler(get),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def _serve_threads(chunks: list[bytes]) -> None:
    def get(request: bytes, context: Any) -> Iterator[bytes]:
        yield from chunks

    server = grpc.server(ThreadPoolExecutor(_THREADS), options=_OPTIONS)
    server.add_generic_rpc_handlers((_handler(get),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def _serve_tcp(data: bytes) -> None:
    class Handler(socketserver.BaseRequestHandler):
        """Sends all for every byte that it gets."""

        def handle(self) -> None:
            while self.request.recv(1):
                self.request.sendall(data)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


def main(kind: str, file: str, chunk_bytes: str) -> None:
    """Serve until ended."""
    data, size = Path(file).read_bytes(), int(chunk_bytes)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    if kind == "asyncio":
        asyncio.run(_serve_asyncio(chunks))
    elif kind == "threads":
        _serve_threads(chunks)
    else:
        _serve_tcp(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
