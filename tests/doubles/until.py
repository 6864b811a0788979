"""Waiting for what no event tells a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], object]) -> None:
    """Wait until ``holds`` returns something true."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - that is what this is for
            await asyncio.sleep(0.002)
