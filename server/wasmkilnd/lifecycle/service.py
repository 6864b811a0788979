"""The daemon as its service manager sees it, and ``wasmkilnd reload``.

systemd gets a status when it changes, at most every five seconds. The event loop answers its
watchdog, so a loop that hangs answers no more; and only while jobs get on (``progress``).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import structlog

from wasmkilnd.lifecycle import systemd
from wasmkilnd.lifecycle.reload import ReloadResult
from wasmkilnd.lifecycle.running import RunningDaemon, RunningFile, began, remove_stale

log = structlog.get_logger("wasmkilnd")

_STATUS_S = 5.0


class Service:
    """Tells what the daemon does. For one event loop."""

    def __init__(
        self, state_dir: Path, version: str, status: Callable[[], str], holds: Callable[[], bool]
    ) -> None:
        """``status`` returns a sentence for people, ``holds`` whether the daemon gets on."""
        self._state_dir = state_dir
        self._status = status
        self._holds = holds
        self._file = RunningFile(state_dir)
        self._me = RunningDaemon(os.getpid(), began(os.getpid()), version)
        self._told = ""
        self._keeping: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Say that the daemon serves, and go on telling how it is."""
        await asyncio.to_thread(remove_stale, self._state_dir)
        self._me = replace(self._me, status=self._status())
        await self._write()
        self._ready()
        self._keeping = asyncio.create_task(self._keep_told())

    async def reload(self, work: Callable[[], Awaitable[ReloadResult]]) -> None:
        """Reload, and tell how that ended. Never raises."""
        systemd.reloading()
        self._me = replace(self._me, reloads_begun=self._me.reloads_begun + 1)
        await self._write()
        try:
            result = await work()
        except Exception:  # A defect in reloading must not end a daemon that serves.
            log.exception("cannot reload: a defect of the daemon")
            result = ReloadResult("this is a defect of the daemon: its log has the cause")
        self._me = replace(
            self._me,
            reloads_ended=self._me.reloads_begun,
            refused=result.refused,
            need_restart=tuple(result.need_restart),
            status=self._status(),
        )
        # systemd first: who waits for the file may ask systemd next.
        self._ready()
        await self._write()

    async def end(self) -> None:
        """Say nothing more."""
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            await asyncio.to_thread(self._file.remove)

    async def _write(self) -> None:
        await asyncio.to_thread(self._file.write, self._me)

    def _ready(self) -> None:
        self._told = self._text()
        systemd.ready(self._told)

    def _text(self) -> str:
        if not self._me.refused:
            return self._status()
        return f"the last reload changed nothing: {self._me.refused}; {self._status()}"

    async def _keep_told(self) -> None:
        if not systemd.listens():
            return
        limit_s = systemd.watchdog_s()
        pause_s = min(_STATUS_S, limit_s / 3) if limit_s else _STATUS_S
        next_s, held = time.monotonic() + _STATUS_S, True
        while True:
            if limit_s:
                before, held = held, self._holds()
                if held:
                    systemd.alive()
                elif before:
                    log.error("jobs wait and get no worker: the watchdog will restart the daemon")
            if time.monotonic() >= next_s and (text := self._text()) != self._told:
                systemd.status(text)
                self._told, next_s = text, time.monotonic() + _STATUS_S
            await asyncio.sleep(pause_s)
