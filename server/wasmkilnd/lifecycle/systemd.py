"""The daemon as its service manager sees it, and ``wasmkilnd reload``.

sd_notify(3) without the library: a datagram to the socket in NOTIFY_SOCKET, which systemd
guarantees as stable. Nothing is said where no service manager set that.

systemd gives a start TimeoutStartSec, and a long step as much as that may take (``long_step``). It
gets a status every five seconds. The event loop answers its watchdog, so a loop that hangs answers
no more; and only while jobs get on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import structlog

from wasmkilnd.files.threads import on_disk
from wasmkilnd.lifecycle import running
from wasmkilnd.lifecycle.reload import ReloadResult

log = structlog.get_logger("wasmkilnd")

_LOOK_S = 5.0
_REMOVE_S = 2.0  # How long a disk may delay the end.


def notify(*state: str) -> None:
    """Tell systemd each ``NAME=text``, of which the first line counts."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # The abstract namespace.
    message = "\n".join(each.partition("\n")[0] for each in state)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
        manager.setblocking(False)  # A manager that does not read must not hold up the daemon.
        manager.connect(address)
        manager.send(message.encode())


def watchdog_s() -> float:
    """Return within how many seconds the watchdog wants an answer; 0 without one."""
    limit_us = int(os.environ.get("WATCHDOG_USEC") or 0)
    whose = int(os.environ.get("WATCHDOG_PID") or 0)
    # A parent's, which the environment was inherited from, is not this process's.
    return limit_us / 1e6 if whose in (0, os.getpid()) else 0.0


def long_step(what: str, at_most_s: float) -> None:
    """Tell the service manager what the start does next, and how long that may take.

    It ends a daemon that is not ready by then, and has not begun another long step.
    """
    notify(f"STATUS={what}", f"EXTEND_TIMEOUT_USEC={int(at_most_s * 1e6)}")


class Service:
    """Tells what the daemon does, and how its reloads end. For one event loop."""

    def __init__(
        self, state_dir: Path, status: Callable[[], str], look: Callable[[], bool]
    ) -> None:
        """``status`` returns a sentence for people.

        ``look`` is called again and again, and returns whether the daemon gets on.
        """
        self._state_dir, self._status, self._look = state_dir, status, look
        self._me = running.RunningDaemon(os.getpid(), running.began(os.getpid()))
        self._keeping: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Say that the daemon serves, and go on telling how it is."""
        await on_disk(running.running, self._state_dir, tidy=True)
        await self._write(status=self._status())
        self._ready()
        self._keeping = asyncio.create_task(self._keep_told())

    async def reload(self, work: Callable[[], Awaitable[ReloadResult]]) -> None:
        """Reload, and tell how that ended. Never raises."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notify("RELOADING=1", f"MONOTONIC_USEC={now_us}")
        begun = self._me.reloads_begun + 1
        await self._write(reloads_begun=begun)
        try:
            result = await work()
        except Exception:  # A defect in reloading must not end a daemon that serves.
            log.exception("cannot reload: a defect of the daemon")
            result = ReloadResult("this is a defect of the daemon: its log has the cause")
        self._me = replace(self._me, refused=result.refused)
        # systemd first: who waits for the file may ask systemd next.
        self._ready()
        restart = tuple(result.need_restart)
        await self._write(reloads_ended=begun, need_restart=restart, status=self._status())

    async def end(self) -> None:
        """Say nothing more."""
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(on_disk(running.remove, self._state_dir), _REMOVE_S)

    async def _write(self, **changed: object) -> None:
        self._me = replace(self._me, **changed)  # type: ignore[arg-type]
        await on_disk(running.write, self._state_dir, self._me)

    def _ready(self) -> None:
        notify("READY=1", f"STATUS={self._text()}")

    def _text(self) -> str:
        refused = self._me.refused
        return f"the last reload failed: {refused}; {self._status()}" if refused else self._status()

    async def _keep_told(self) -> None:
        limit_s, gets_on = watchdog_s(), True
        while True:
            await asyncio.sleep(min(_LOOK_S, limit_s / 3) if limit_s else _LOOK_S)
            before, gets_on = gets_on, self._look()
            if limit_s and gets_on:
                notify("WATCHDOG=1")
            elif limit_s and before:
                log.error("jobs wait and get no worker: the watchdog will restart the daemon")
            notify(f"STATUS={self._text()}")
