"""Reads of keys that may hold something else than strings: others may write to the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from wasmkilnd.cache.link import RedisLink
from wasmkilnd.errors import TierUnavailable

T = TypeVar("T")

_STRINGS = frozenset({"string", "none"})


async def read_strings(
    link: RedisLink,
    names: Sequence[bytes],
    read: Callable[[Sequence[bytes]], Awaitable[list[T]]],
) -> tuple[dict[bytes, T], dict[bytes, str]]:
    """Answer what ``read`` reads from those of ``names`` that hold strings, by name.

    And of what type the others are: one of them lets a read of many fail. Raises
    TierUnavailable.
    """
    try:
        return dict(zip(names, await read(names), strict=True)), {}
    except TierUnavailable:
        if link.breaker.open:
            raise
        types = dict(zip(names, await link.types(names), strict=True))
        others = {name: kind for name, kind in types.items() if kind not in _STRINGS}
        if not others:
            raise
    found, more = await read_strings(link, [name for name in names if name not in others], read)
    return found, others | more
