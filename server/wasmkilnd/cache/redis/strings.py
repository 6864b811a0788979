"""Reads of keys that may hold something else than strings: others may write to the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from wasmkilnd.errors import WrongType

T = TypeVar("T")


async def read_strings(
    names: Sequence[bytes], read: Callable[[Sequence[bytes]], Awaitable[list[T]]]
) -> tuple[dict[bytes, T], frozenset[bytes]]:
    """Return what ``read`` reads from the strings among ``names``, by name, and what are none.

    One of the others lets a read of many fail: it is found by halves. Raises
    TierUnavailable.
    """
    try:
        return dict(zip(names, await read(names), strict=True)), frozenset()
    except WrongType:
        if len(names) == 1:
            return {}, frozenset(names)
    middle = len(names) // 2
    found, others = await read_strings(names[:middle], read)
    more, other = await read_strings(names[middle:], read)
    return found | more, others | other
