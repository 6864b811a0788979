"""Compile what callers of an old engine use for a new one, before names stand for the new one.

Every daemon of a fleet goes through the same artifacts, in an order of its own. The fleet's leases
let each be compiled once; the daemon that finds it stored fetches it into its memory. So whatever
daemon is killed, the others go on, and one that is restarted begins again and finds most of the
work done.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from wasmkilnd.compile import THE_DAEMON, Request
from wasmkilnd.engines.names import WarmOrder, WarmOrders
from wasmkilnd.errors import Reason, TierUnavailable, WasmkilnError
from wasmkilnd.model import SWITCHED_OFF, EngineWarmUp
from wasmkilnd.ownership import NotOurs
from wasmkilnd.tenants import OpenTenant, Tenants
from wasmkilnd.usage import Use

log = structlog.get_logger("wasmkilnd.engines")

# The tier or the workers may be back soon: none of these says anything about the module.
_AGAIN = frozenset({Reason.COMPILE_QUEUE_FULL, Reason.WORKER_UNAVAILABLE, Reason.QUOTA_EXCEEDED})
_PAUSE_S = 1.0
# How long nothing gets done before a warm-up goes on without what only the shared tier knows: a
# server that is gone for good must not keep names from the new engine for ever.
_PATIENCE_S = 600.0
_LOG_EVERY = 100


class WarmUps:
    """The warm-ups of a daemon, each in the background. For one event loop."""

    def __init__(
        self,
        orders: WarmOrders,
        tenants: Tenants,
        at_once: int,
        names_move: Callable[[str], Coroutine[Any, Any, None]],
        in_background: Callable[[Coroutine[Any, Any, None]], None],
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """Compile ``at_once`` artifacts at a time, and no more than there are slots behind.

        ``names_move`` is awaited with the id of each engine whose warm-up has ended. A warm-up
        waits ``patience_s`` for a shared tier that does not answer, if nothing gets done meanwhile.
        """
        self._orders = orders
        self._tenants = tenants
        self._at_once = at_once
        self._names_move = names_move
        self._in_background = in_background
        self._patience_s = patience_s
        self._waiting_since: dict[str, float] = {}
        self._status: dict[str, EngineWarmUp] = {}

    @property
    def status(self) -> Sequence[EngineWarmUp]:
        """Every warm-up since the daemon started."""
        return tuple(self._status.values())

    def begin(self, orders: Sequence[WarmOrder]) -> None:
        """Begin what ``orders`` say, unless that is under way."""
        for order in orders:
            known = self._status.get(order.engine_id)
            if known is None or known.ended:
                self._status[order.engine_id] = EngineWarmUp(order.engine_id, order.from_engine_id)
                self._in_background(self._run(order))

    async def _run(self, order: WarmOrder) -> None:
        about = {"engine": order.engine_id, "from": order.from_engine_id}
        try:
            hot = await self._hot(order)
            self._change(order.engine_id, total=len(hot))
            log.info("engine warm-up began", artifacts=len(hot), **about)
            random.shuffle(hot)
            rest = iter(hot)
            some = (self._work(order.engine_id, rest) for _ in range(self._at_once))
            await asyncio.gather(*some)
        except Exception:
            log.exception("engine warm-up failed: a defect of the daemon", **about)
        status = self._status[order.engine_id]
        self._waiting_since.pop(order.engine_id, None)
        try:
            await asyncio.to_thread(self._orders.remove, order.engine_id)
        except (OSError, NotOurs) as failure:
            log.warning("cannot remove the order of a warm-up", cause=str(failure), **about)
        await self._names_move(order.engine_id)
        self._change(order.engine_id, ended=True)
        log.info("engine warm-up ended", done=status.done, failed=status.failed, **about)

    async def _hot(self, order: WarmOrder) -> list[tuple[str, Use]]:
        """Return what is used most with the old engine, each with its namespace."""
        counted: list[tuple[float, str, Use]] = []
        for namespace, opened in self._tenants.opened.items():
            uses = await self._uses_of(opened, order)
            counted += [(count, namespace, use) for use, count in uses]
        counted.sort(key=lambda each: (-each[0], each[2][0]))
        return [(namespace, use) for _, namespace, use in counted[: order.top]]

    async def _uses_of(self, opened: OpenTenant, order: WarmOrder) -> list[tuple[Use, float]]:
        while True:
            try:
                uses = await opened.usage.of_fleet()
            except TierUnavailable:
                if self._waited_enough(order.engine_id):
                    log.warning(
                        "cannot read what the fleet uses most: this daemon's own counts decide",
                        engine=order.engine_id,
                    )
                    return opened.usage.own.most(order.top, order.from_engine_id)
                await asyncio.sleep(_PAUSE_S)
            else:
                return uses.most(order.top, order.from_engine_id)

    async def _work(self, engine_id: str, rest: Iterator[tuple[str, Use]]) -> None:
        for namespace, use in rest:
            opened = self._tenants.opened.get(namespace)
            try:
                why = await self._compile(engine_id, opened, use) if opened else ""
            except Exception:
                log.exception("cannot make an artifact ahead", engine=engine_id, module=use[0])
                why = "a defect of the daemon"
            status = self._status[engine_id]
            if why or opened is None:
                self._change(engine_id, failed=status.failed + 1)
                log.warning(
                    "artifact not made ahead",
                    engine=engine_id,
                    module=use[0],
                    cause=why or "its namespace is closed",
                )
            else:
                self._change(engine_id, done=status.done + 1)
            ended = status.done + status.failed + 1
            if ended % _LOG_EVERY == 0:
                log.info("engine warm-up", engine=engine_id, ended=ended, total=status.total)

    async def _compile(self, engine_id: str, opened: OpenTenant, use: Use) -> str:
        """Have one artifact in memory and in the tiers; return why that is not possible."""
        module_sha256, spec = use
        settings: Mapping[str, str] = dict(spec.settings)
        while True:
            asked = (module_sha256, b"", engine_id, spec.target, spec.cpu, settings)
            try:
                await opened.tenant.compiler.ahead(Request(*asked, terms=THE_DAEMON))
            except WasmkilnError as failure:
                lost = self._may_come_back(opened, failure)
                if failure.reason in _AGAIN or (lost and not self._waited_enough(engine_id)):
                    await asyncio.sleep(max(_PAUSE_S, failure.retry_after_s or 0.0))
                    continue
                closing = opened not in self._tenants.opened.values()
                if failure.reason is Reason.SERVER_DRAINING and not closing:
                    # The daemon ends, and the order stays for the next start.
                    raise asyncio.CancelledError from None
                return failure.message
            self._waiting_since.pop(engine_id, None)
            return ""

    def _waited_enough(self, engine_id: str) -> bool:
        """Return whether a warm-up has waited for the shared tier as long as it may."""
        since = self._waiting_since.setdefault(engine_id, time.monotonic())
        return time.monotonic() - since >= self._patience_s

    def _may_come_back(self, opened: OpenTenant, failure: WasmkilnError) -> bool:
        """Return whether the module may be in a tier that does not answer now."""
        tier = opened.remote_status()
        down = not tier.up and tier.detail != SWITCHED_OFF
        return failure.reason is Reason.MODULE_NOT_LOADED and down

    def _change(self, engine_id: str, **fields: Any) -> None:
        self._status[engine_id] = replace(self._status[engine_id], **fields)
