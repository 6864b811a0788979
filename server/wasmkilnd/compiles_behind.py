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
from typing import Any

import structlog

from wasmkilnd import errors
from wasmkilnd.account import UNLIMITED, Account
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.flights import Waiter
from wasmkilnd.model import LOCAL_HITS, CacheKey, CompileSpec, Origin
from wasmkilnd.ports import Recorder
from wasmkilnd.requests import CompileRequest, Served, Terms

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


class BehindSlots(asyncio.Semaphore):
    """How many compiles behind may run at once, those of all namespaces together.

    It should leave workers for callers.
    """


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
        self._turn = asyncio.Lock()
        self._adding: dict[CacheKey, asyncio.Task[Served]] = {}
        self._making: set[asyncio.Task[Served]] = set()
        self._failed: OrderedDict[CacheKey, float] = OrderedDict()
        self._ended = False

    def __len__(self) -> int:
        """Return how many compiles wait or run."""
        return len(self._adding)

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
        if self._ended or key in self._adding or self._failed.get(key, 0.0) > time.monotonic():
            return
        if (payer := account.behind()) is None:
            return
        if len(self._adding) > MAX_WAITING:
            self._recorder.compiled_behind("dropped")
            return
        request = request_behind_all(
            module_sha256, spec.engine.id, spec.target, spec.cpu, spec.changed_settings, payer
        )
        request.skip_cache_lookup = anew
        began_s = time.monotonic()
        task = self._adding[key] = asyncio.create_task(self._serve(request))
        task.add_done_callback(lambda done: self._added(key, request.engine, began_s, done))

    async def make(self, request: CompileRequest) -> Served:
        """Serve a request of the daemon behind all other work, in a slot, and wait for it.

        Raises the errors of Compile, and SERVER_DRAINING once ``end`` was called.
        """
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

    async def end(self) -> None:
        """Start no more, and end those that wait or run."""
        self._ended = True
        tasks = [*self._adding.values(), *self._making]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, request: CompileRequest) -> Served:
        """Serve the daemon's own request in a slot; note how it ended, as calls do for theirs."""
        async with self._turn:  # One of each namespace asks at a time, so that they take turns.
            await self._slots.acquire()
        began_s, module, engine = time.monotonic(), request.sha256, request.engine
        try:
            served = await self._compile_now(request)
            if served.origin not in LOCAL_HITS:
                took_s = time.monotonic() - began_s
                self._recorder.compile_ended(module, engine, served.origin.value, "", took_s)
            return served
        except WasmkilnError as failure:
            took_s = time.monotonic() - began_s
            self._recorder.compile_ended(module, engine, "", failure.reason.value, took_s)
            raise
        finally:
            self._slots.release()
            if self._ended:
                # Without this, a job that runs would delay the end of the daemon.
                self._end_unwanted(request)

    def _added(
        self, key: CacheKey, engine: str, began_s: float, task: asyncio.Task[Served]
    ) -> None:
        del self._adding[key]
        about = {"module": key.module_sha256, "engine": engine}
        failure = errors.server_draining() if task.cancelled() else task.exception()
        outcome = "failed"
        if failure is None:
            origin = task.result().origin
            outcome = "compiled" if origin is Origin.COMPILED else "found"
            seconds = round(time.monotonic() - began_s, 3)
            log.info("optimised artifact ready", origin=origin.value, seconds=seconds, **about)
        elif not isinstance(failure, WasmkilnError) or failure.reason is Reason.SERVER_DRAINING:
            outcome = "dropped"
        else:
            self._failed[key] = time.monotonic() + _PAUSE_S
            self._failed.move_to_end(key)
            if len(self._failed) > _MAX_FAILED:
                self._failed.popitem(last=False)
            reason, cause = failure.reason.value, failure.message
            log.info("optimised artifact not made", reason=reason, cause=cause, **about)
        self._recorder.compiled_behind(outcome)
