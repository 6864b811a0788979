"""The work of a warm-up: compile with a new engine what is used most with the old one.

Every daemon of a fleet goes through the same artifacts, in an order of its own. The fleet's leases
let each be compiled once; the daemon that finds it stored fetches it into its memory. So whatever
daemon is killed, the others continue, and one that is restarted begins again and finds most of the
work done.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress

import structlog

from wasmkilnd import errors
from wasmkilnd.compile import THE_DAEMON, Request
from wasmkilnd.engines.names import WarmOrder
from wasmkilnd.errors import Reason
from wasmkilnd.model import EngineWarmUp
from wasmkilnd.tenants import OpenTenant, Tenants
from wasmkilnd.usage import Use

log = structlog.get_logger("wasmkilnd.engines")

# The tier or the workers may be back soon: none of these says anything about the module.
_AGAIN = frozenset({Reason.COMPILE_QUEUE_FULL, Reason.WORKER_UNAVAILABLE, Reason.QUOTA_EXCEEDED})
_PAUSE_S = 1.0
# How long a warm-up waits for what only the shared tier knows: a server that is gone for good must
# not keep names from the new engine for ever.
_PATIENCE_S = 600.0


async def compile_hot(
    order: WarmOrder, state: EngineWarmUp, tenants: Tenants, at_once: int
) -> None:
    """Have what is used most in memory and in the tiers; count it in ``state``.

    Never raises for an artifact that cannot be made.
    """
    until_s = time.monotonic() + _PATIENCE_S
    about = {"engine": order.engine_id, "from": order.from_engine_id}

    async def work() -> None:
        for opened, (sha256, (_, target, cpu, settings)) in rest:
            asked = sha256, b"", order.engine_id, target, cpu, dict(settings)
            request = Request(*asked, terms=THE_DAEMON)
            why = await _compile(tenants, opened, request, until_s)
            state.done += not why
            state.failed += bool(why)
            if why:
                what = {"engine": order.engine_id, "module": sha256, "cause": why}
                log.warning("artifact not made ahead", **what)

    try:
        hot = await _hot(tenants, order)
        state.total = len(hot)
        log.info("engine warm-up began", artifacts=len(hot), **about)
        random.shuffle(hot)
        rest = iter(hot)
        await asyncio.gather(*(work() for _ in range(at_once)))
    except Exception:
        log.exception("engine warm-up failed: a defect of the daemon", **about)


async def _hot(tenants: Tenants, order: WarmOrder) -> list[tuple[OpenTenant, Use]]:
    """Return what is used most with the old engine, each with its namespace.

    What this daemon counted decides where the shared tier does not answer.
    """
    counted: list[tuple[float, OpenTenant, Use]] = []
    for opened in [*tenants.opened.values()]:
        uses = opened.usage.own
        with suppress(errors.TierUnavailable):
            uses = await opened.usage.of_fleet()
        most = uses.most(order.top, order.from_engine_id)
        counted += [(count, opened, use) for use, count in most]
    counted.sort(key=lambda each: (-each[0], each[2][0]))
    return [(opened, use) for _, opened, use in counted[: order.top]]


async def _compile(tenants: Tenants, opened: OpenTenant, asked: Request, until_s: float) -> str:
    """Have one artifact in memory and in the tiers; return why that is not possible."""
    while True:
        try:
            await opened.tenant.compiler.ahead(asked)
            return ""
        except errors.WasmkilnError as failure:
            reason = failure.reason
            if reason is Reason.SERVER_DRAINING and opened in tenants.opened.values():
                # The daemon ends, and the order stays for the next start.
                raise asyncio.CancelledError from None
            # It may be in a tier that does not answer now.
            down = any(not (each.up or each.switched_off) for each in opened.shared())
            lost = reason is Reason.MODULE_NOT_LOADED and down
            if reason not in _AGAIN and not (lost and time.monotonic() < until_s):
                return failure.message
            await asyncio.sleep(max(_PAUSE_S, failure.retry_after_s or 0.0))
        except Exception:
            log.exception("cannot make an artifact ahead", engine=asked.engine)
            return "a defect of the daemon"
