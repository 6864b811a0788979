"""Where long work is done, so that it holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# Below this, handing a value to a thread costs more than checking it.
_INLINE_BYTES = 64 * 1024


async def off_loop(size_bytes: int, work: Callable[..., T], *args: Any) -> T:
    """Do ``work``, which takes as long as its ``size_bytes``, where it holds nobody up."""
    if size_bytes < _INLINE_BYTES:
        return work(*args)
    return await asyncio.to_thread(work, *args)
