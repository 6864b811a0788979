"""Asking several for what any of them can answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def first_success(asked: Iterable[Coroutine[Any, Any, T]]) -> T:
    """Return what the first of ``asked`` that succeeds answers; the others are stopped.

    So one that hangs costs nothing while another answers. Raises what the last to
    fail raised if all did. There has to be at least one.
    """
    tasks = [asyncio.create_task(each) for each in asked]
    try:
        failure: Exception | None = None
        for task in asyncio.as_completed(tasks):
            try:
                return await task
            except Exception as error:
                failure = error
        raise failure or ValueError("nobody was asked")
    finally:
        for left in tasks:
            left.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
