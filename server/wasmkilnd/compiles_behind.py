"""Compiles that no caller waits for: they go behind all other work, in a few slots.

There are two kinds. ``CompilesBehind.add`` is for the optimised artifact behind a fast one, and for
one that is compiled anew: nobody learns when it is there. ``CompilesBehind.make`` is for a warm-up,
which goes on when it is there, and has to know why it is not.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import structlog

from wasmkilnd import errors
from wasmkilnd.account import UNLIMITED, Account
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import LOCAL_HITS, CacheKey, CompileSpec, Origin
from wasmkilnd.ports import Recorder
from wasmkilnd.requests import CompileRequest, Served, Terms
from wasmkilnd.waiters import Waiter

log = structlog.get_logger("wasmkilnd")

MAX_WAITING = 1000
"""How many compiles may wait behind; of each, a digest and a spec are kept, and no module."""
_PAUSE_S = 60.0
_MAX_FAILED = 4096

# Callers go first, and so does what they warm.
_THE_DAEMON = Waiter(background=True, last=True)


def request_behind_all(
    module_sha256: str,
    engine_id: str,
    target: str,
    cpu: str,
    settings: Mapping[str, str],
    account: Account = UNLIMITED,
) -> CompileRequest:
    """Return a request of the daemon's own: callers go first, and so does what they warm."""
    return CompileRequest(
        sha256=module_sha256,
        engine=engine_id,
        target=target,
        cpu=cpu,
        settings=settings,
        terms=Terms(_THE_DAEMON, account=account),
    )


class BehindSlots:
    """How many compiles behind may run at once, those of all namespaces together.

    Namespaces that wait for a slot get one in turn. For one event loop.
    """

    def __init__(self, at_once: int) -> None:
        """Have ``at_once`` slots, which should leave workers for callers."""
        self._free = at_once
        self._asking: dict[Callable[[], None], None] = {}

    def take(self, start: Callable[[], None]) -> bool:
        """Take a slot; if none is free, return False, and call ``start`` when one is."""
        if self._free:
            self._free -= 1
            return True
        self._asking[start] = None
        return False

    def give_back(self) -> None:
        """Free a slot that was taken."""
        self._free += 1
        while self._free and self._asking:
            start = next(iter(self._asking))
            del self._asking[start]
            start()


class CompilesBehind:
    """The compiles behind of one namespace. For one event loop."""

    def __init__(
        self,
        compile_now: Callable[[CompileRequest], Coroutine[Any, Any, Served]],
        end_unwanted: Callable[[CompileRequest], None],
        recorder: Recorder,
        slots: BehindSlots,
    ) -> None:
        """Run as many compiles at a time as there are ``slots``.

        ``compile_now`` serves a request. ``end_unwanted`` ends its flight if no caller waits
        for it.
        """
        self._compile_now = compile_now
        self._end_unwanted = end_unwanted
        self._recorder = recorder
        self._slots = slots
        self._waiting: OrderedDict[CacheKey, CompileRequest] = OrderedDict()
        self._running: dict[CacheKey, asyncio.Task[None]] = {}
        self._making: set[asyncio.Task[Served]] = set()
        self._failed: OrderedDict[CacheKey, float] = OrderedDict()
        self._ended = False

    def __len__(self) -> int:
        """Return how many compiles wait or run."""
        return len(self._waiting) + len(self._running)

    def add(
        self,
        module_sha256: str,
        spec: CompileSpec,
        account: Account = UNLIMITED,
        *,
        anew: bool = False,
    ) -> None:
        """Have a module compiled behind all other work, unless that is going to happen anyway.

        With ``anew``, compile it even if a tier holds the artifact. ``account`` pays for it, so
        nothing is compiled while that has used up a quota.
        """
        key = spec.key_for(module_sha256)
        known = key in self._waiting or key in self._running
        if self._ended or known or self._failed.get(key, 0.0) > time.monotonic():
            return
        if (payer := account.behind()) is None:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._recorder.compiled_behind("dropped")
            return
        request = request_behind_all(
            module_sha256, spec.engine.id, spec.target, spec.cpu, spec.changed_settings, payer
        )
        request.skip_cache_lookup = anew
        self._waiting[key] = request
        self._start()

    async def make(self, request: CompileRequest) -> Served:
        """Serve a request of the daemon behind all other work, in a slot, and wait for it.

        Raises the errors of Compile, and SERVER_DRAINING once ``end`` was called.
        """
        woken = asyncio.Event()
        while not self._slots.take(woken.set):
            await woken.wait()
            woken.clear()
        try:
            if self._ended:
                raise errors.server_draining()
            making = asyncio.create_task(self._serve(request))
            self._making.add(making)
            try:
                await asyncio.wait((making,))
            finally:
                making.cancel()
                self._making.discard(making)
            if making.cancelled():
                raise errors.server_draining()
            return making.result()
        finally:
            self._slots.give_back()
            if self._ended:
                self._end_unwanted(request)

    async def end(self) -> None:
        """Start no more, and end those that wait or run."""
        self._ended = True
        for _ in self._waiting:
            self._recorder.compiled_behind("dropped")
        self._waiting.clear()
        running = [*self._running.values(), *self._making]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _start(self) -> None:
        while self._waiting and self._slots.take(self._start):
            key, request = self._waiting.popitem(last=False)
            task = self._running[key] = asyncio.create_task(self._compile(key, request))
            task.add_done_callback(partial(self._has_ended, key))

    def _has_ended(self, key: CacheKey, _: asyncio.Task[None]) -> None:
        del self._running[key]
        self._slots.give_back()
        self._start()

    async def _compile(self, key: CacheKey, request: CompileRequest) -> None:
        began_s = time.monotonic()
        about = {"module": key.module_sha256, "engine": request.engine}
        outcome = "dropped"
        try:
            served = await self._serve(request)
        except WasmkilnError as failure:
            if failure.reason is not Reason.SERVER_DRAINING:
                outcome = "failed"
                self._remember_failure(key)
                log.info(
                    "optimised artifact not made",
                    reason=failure.reason.value,
                    cause=failure.message,
                    **about,
                )
        else:
            outcome = "compiled" if served.origin is Origin.COMPILED else "found"
            seconds = round(time.monotonic() - began_s, 3)
            log.info(
                "optimised artifact ready", origin=served.origin.value, seconds=seconds, **about
            )
        finally:
            self._recorder.compiled_behind(outcome)
            if self._ended:
                # Without this, a job that runs would delay the end of the daemon.
                self._end_unwanted(request)

    async def _serve(self, request: CompileRequest) -> Served:
        """Serve the daemon's own request, and note how it ended, as calls do for theirs."""
        began_s = time.monotonic()
        module, engine = request.sha256, request.engine
        try:
            served = await self._compile_now(request)
        except WasmkilnError as failure:
            took_s = time.monotonic() - began_s
            self._recorder.compile_ended(module, engine, "", failure.reason.value, took_s)
            raise
        if served.origin not in LOCAL_HITS:
            took_s = time.monotonic() - began_s
            self._recorder.compile_ended(module, engine, served.origin.value, "", took_s)
        return served

    def _remember_failure(self, key: CacheKey) -> None:
        self._failed[key] = time.monotonic() + _PAUSE_S
        self._failed.move_to_end(key)
        if len(self._failed) > _MAX_FAILED:
            self._failed.popitem(last=False)
