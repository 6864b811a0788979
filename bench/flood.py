"""Keeps every worker of a daemon compiling until it is ended.

``python -m bench.flood ADDRESS MODULE_FILE`` prints a line once everybody calls.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from wasmkiln import AsyncClient


async def main(address: str, module: bytes) -> None:
    """Call for ever, with as many callers as there are workers."""
    async with AsyncClient(address, timeout_s=120) as client:

        async def again_and_again(engine_id: str, number: int) -> None:
            # Calls of one artifact share a flight: each caller has an artifact of its own, by a
            # custom section that changes the digest and nothing else.
            wasm = module + bytes([0, 2, 1, 65 + number])
            while True:
                await client.compile(
                    wasm, engine=engine_id, skip_cache_lookup=True, omit_artifact=True
                )

        callers = [
            asyncio.ensure_future(again_and_again(each.engine, number))
            for each in (await client.stats()).workers
            for number in range(each.workers)
        ]
        print("{}", flush=True)
        await asyncio.gather(*callers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
