"""Keeps every worker of a daemon compiling until it is ended: a program of the bench.

python -m bench.flood ADDRESS MODULE_FILE ENGINE_ID=CALLERS…
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from wasmkiln import AsyncClient


async def main(address: str, module: bytes, engines: list[str]) -> None:
    """Print a line once everybody compiles; go on."""
    async with AsyncClient(address, timeout_s=120) as client:

        async def again_and_again(engine_id: str, number: int) -> None:
            # Calls of one artifact share a flight: each caller has an artifact of its own.
            wasm = module + _custom_section(number)
            while True:
                await client.compile(
                    wasm, engine=engine_id, skip_cache_lookup=True, omit_artifact=True
                )

        callers = [
            again_and_again(engine_id, index)
            for engine_id, _, count in (each.partition("=") for each in engines)
            for index in range(int(count))
        ]
        running = [asyncio.ensure_future(caller) for caller in callers]
        print("flooding", flush=True)
        await asyncio.gather(*running)


def _custom_section(number: int) -> bytes:
    """Return a section that changes a module's digest and nothing else."""
    return bytes([0, 2, 1, 65 + number])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes(), sys.argv[3:]))
