"""The server that a hit over HTTP is compared with: aiohttp's own answer with a file.

``python -m bench.files FILE`` prints its port and serves.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


async def main(path: str) -> None:
    """Serve until ended."""

    async def get(_: web.BaseRequest) -> web.FileResponse:
        return web.FileResponse(path)

    server = await asyncio.get_running_loop().create_server(web.Server(get), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
