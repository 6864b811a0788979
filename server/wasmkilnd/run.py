"""The life of a daemon: start, handle signals, reload, end."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
from collections.abc import Callable

import structlog

from wasmkilnd.app import Daemon, Shutdown, until
from wasmkilnd.lifecycle.preflight import configure_malloc
from wasmkilnd.lifecycle.systemd import Service, notify
from wasmkilnd.settings import Settings
from wasmkilnd.settings_loader import LoadedSettings
from wasmkilnd.telemetry import logs

log = structlog.get_logger("wasmkilnd")

_SHOW_S = 2.0


async def run(loaded: LoadedSettings, read: Callable[[], LoadedSettings]) -> None:
    """Serve until SIGTERM, SIGINT or Drain, then drain and end.

    ``read`` returns the configuration at each SIGHUP. Raises as ``Daemon.start``.
    """
    configure_malloc()
    with logs.standard_error(loaded.settings.log_format, loaded.settings.log_level):
        # On a fatal signal, Python prints its stack here and nowhere else.
        faulthandler.enable(file=2)
        await _live(loaded, read)


async def _live(loaded: LoadedSettings, read: Callable[[], LoadedSettings]) -> None:
    shutdown, hung_up = Shutdown(), asyncio.Event()
    daemon = Daemon(loaded, shutdown)
    service = Service(loaded.settings.state_dir, daemon.version, daemon.status, daemon.look)
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

    async def reload_at_each_hang_up() -> None:
        while True:
            await hung_up.wait()
            hung_up.clear()
            await service.reload(lambda: daemon.reload(read))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    # Since ``entry``, one that came has waited: the daemon reloads once it has started.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    try:
        if await until(shutdown.asked, daemon.start()):
            if is_banner_wanted(loaded.settings):
                await asyncio.to_thread(_show, daemon.banner)
            await service.begin()
            await until(shutdown.asked, reload_at_each_hang_up())
    finally:
        notify("STOPPING=1", "STATUS=draining")
        await daemon.stop()
        await service.end()
        # The event loop removes its handlers as it closes, before the interpreter ends: a signal
        # that comes in between would kill a daemon that has stopped cleanly.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def is_banner_wanted(settings: Settings) -> bool:
    """Return whether somebody reads the banner: not a program that reads JSON."""
    return bool(sys.stdout and (sys.stdout.isatty() or settings.log_format == "text"))


def _show(text: str) -> None:
    """Print the banner; give up after 2 s if nobody reads it."""
    if sys.stdout:  # the daemon may have been started without one
        writer = logs.Writer(sys.stdout.fileno())
        writer.put(lambda _: text, {})
        writer.end(_SHOW_S)
