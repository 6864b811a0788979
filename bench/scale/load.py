"""Callers that call one after the other until their time is over: a program of the bench.

    python -m bench.scale.load ADDRESS METHOD REQUEST_FILE CALLERS

Each caller has a connection of its own. Once all are connected, the program prints a line, and
from then on answers each order, a line of JSON with ``seconds``, with the number of calls.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from grpc import aio

_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


async def _call(call: Any, request: bytes) -> None:
    async for _ in call(request):
        pass


async def main(address: str, method: str, request: bytes, callers: int) -> None:
    """Serve orders until standard input ends."""
    async with AsyncExitStack() as stack:
        calls = []
        for _ in range(callers):
            channel = aio.insecure_channel(address, _OWN_CONNECTION)
            calls.append((await stack.enter_async_context(channel)).unary_stream(method))
        await asyncio.gather(*(_call(call, request) for call in calls))
        print("{}", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            began = time.perf_counter()
            until = began + json.loads(line)["seconds"]

            async def repeat(call: Any, until: float = until) -> int:
                count = 0
                while time.perf_counter() < until:
                    await _call(call, request)
                    count += 1
                return count

            counts = await asyncio.gather(*map(repeat, calls))
            seconds = time.perf_counter() - began
            print(json.dumps({"calls": sum(counts), "seconds": seconds}), flush=True)


if __name__ == "__main__":
    _, address_, method_, file_, callers_ = sys.argv
    asyncio.run(main(address_, method_, Path(file_).read_bytes(), int(callers_)))
