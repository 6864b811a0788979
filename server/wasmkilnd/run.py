"""The life of a daemon: start, handle signals, reload, end."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
from collections.abc import Callable

import structlog

from wasmkilnd.app import Daemon
from wasmkilnd.lifecycle import systemd
from wasmkilnd.lifecycle.banner import is_wanted, show
from wasmkilnd.lifecycle.malloc_trim import configure_malloc
from wasmkilnd.lifecycle.service import Service
from wasmkilnd.lifecycle.shutdown import Shutdown, until
from wasmkilnd.settings_loader import LoadedSettings
from wasmkilnd.telemetry import logs

log = structlog.get_logger("wasmkilnd")


async def run(loaded: LoadedSettings, read: Callable[[], LoadedSettings]) -> None:
    """Serve until SIGTERM, SIGINT or Drain, then drain and end.

    ``read`` returns the configuration at each SIGHUP. Raises CannotStart.
    """
    configure_malloc()
    with logs.standard_error(loaded.settings.log_format, loaded.settings.log_level):
        # On a fatal signal, Python prints its stack here and nowhere else.
        faulthandler.enable(file=2)
        await _live(loaded, read)


async def _live(loaded: LoadedSettings, read: Callable[[], LoadedSettings]) -> None:
    shutdown = Shutdown()
    daemon = Daemon(loaded, shutdown)
    service = daemon.service()
    hung_up = asyncio.Event()
    _handle_signals(daemon, shutdown, hung_up)
    try:
        if await until(shutdown.asked, daemon.start()):
            if is_wanted(loaded.settings):
                await asyncio.to_thread(show, daemon.banner)
            await service.begin()
            await until(shutdown.asked, _reload_at_each(hung_up, daemon, service, read))
    finally:
        systemd.stopping()
        await daemon.stop()
        await service.end()
        _ignore_signals()


def _handle_signals(daemon: Daemon, shutdown: Shutdown, hung_up: asyncio.Event) -> None:
    stops = 0

    def stop(name: str) -> None:
        nonlocal stops
        stops += 1
        # Drain does not count as a first signal: a container's supervisor sends SIGTERM right
        # after the hook that called Drain, and does not mean to hurry the daemon.
        if stops == 1:
            log.info("stopping", signal=name)
            daemon.drain()
        else:
            log.info("stopping at once", signal=name)
            shutdown.hurry()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)


def _ignore_signals() -> None:
    """Ignore signals from now on.

    The event loop removes its handlers as it closes, before the interpreter ends: a signal that
    comes in between would kill a daemon that has stopped cleanly.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


async def _reload_at_each(
    hung_up: asyncio.Event, daemon: Daemon, service: Service, read: Callable[[], LoadedSettings]
) -> None:
    while True:
        await hung_up.wait()
        hung_up.clear()
        await service.reload(lambda: daemon.reload(read))
