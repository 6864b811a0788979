"""Steps of a start that can take longer than systemd waits: say which it is, and ask for time.

systemd gives a start TimeoutStartSec, and more while it is asked for more (EXTEND_TIMEOUT_USEC).
A step asks again and again from the event loop, for as long as it may take at most: so a loop that
hangs and a step that never ends are still ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from wasmkilnd.lifecycle import systemd

_ASK_S = 15.0
_EXTEND_S = 60.0


@asynccontextmanager
async def long_step(
    what: str, at_most_s: float, ask_s: float = _ASK_S
) -> AsyncIterator[Callable[[str], None]]:
    """Tell the service manager that the start does ``what``, and ask for time while it does.

    Yields a function that says more exactly what it does now.
    """
    systemd.status(what)
    if not systemd.listens():
        yield systemd.status
        return
    asking = asyncio.create_task(_ask(at_most_s, ask_s))
    try:
        yield systemd.status
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _ask(at_most_s: float, ask_s: float) -> None:
    end_s = time.monotonic() + at_most_s
    while time.monotonic() < end_s:
        systemd.extend_timeout(_EXTEND_S)
        await asyncio.sleep(ask_s)
