"""Reads of keys that may hold something else than strings: others may write to the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from wasmkilnd.cache.link import RedisLink
from wasmkilnd.errors import TierUnavailable

T = TypeVar("T")

_WRONG_TYPE = "WRONGTYPE"
"""The code of the server's error, which is in what is said of a single command."""


async def read_strings(
    link: RedisLink,
    names: Sequence[bytes],
    read: Callable[[Sequence[bytes]], Awaitable[list[T]]],
) -> tuple[dict[bytes, T], frozenset[bytes]]:
    """Answer what ``read`` reads from the strings among ``names``, by name, and what are none.

    One of the others lets a read of many fail: it is found by halves. Raises
    TierUnavailable.
    """
    try:
        return dict(zip(names, await read(names), strict=True)), frozenset()
    except TierUnavailable as refusal:
        if link.breaker.open:
            raise
        if len(names) == 1:
            if _WRONG_TYPE in str(refusal):
                return {}, frozenset(names)
            raise
    middle = len(names) // 2
    found, others = await read_strings(link, names[:middle], read)
    more, other = await read_strings(link, names[middle:], read)
    return found | more, others | other
