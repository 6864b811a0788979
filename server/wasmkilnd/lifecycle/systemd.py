"""Tell systemd how the daemon is: sd_notify(3), without the library.

These functions do nothing where no service manager set NOTIFY_SOCKET. The protocol is a datagram
to that socket, and systemd guarantees it as stable.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


def ready(status: str) -> None:
    """Say that the daemon serves calls, or that a reload is over; ``status`` is for people."""
    _notify(f"READY=1\nSTATUS={_line(status)}")


def reloading() -> None:
    """Say that the daemon reads its configuration again."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}")


def stopping() -> None:
    """Say that the daemon is stopping."""
    _notify("STOPPING=1\nSTATUS=draining")


def status(text: str) -> None:
    """Say in a sentence what the daemon does, for ``systemctl status``."""
    _notify(f"STATUS={_line(text)}")


def extend_timeout(for_s: float) -> None:
    """Ask for this much time from now, beyond what the manager gives a start."""
    _notify(f"EXTEND_TIMEOUT_USEC={int(for_s * 1e6)}")


def alive() -> None:
    """Say that the daemon works, so that the watchdog lets it."""
    _notify("WATCHDOG=1")


def listens() -> bool:
    """Return whether there is a service manager to tell."""
    return bool(_address())


def watchdog_s() -> float:
    """Return within how many seconds ``alive`` must be called again; 0 without a watchdog."""
    try:
        limit_us = int(os.environ.get("WATCHDOG_USEC", "0"))
        whose = int(os.environ.get("WATCHDOG_PID", "0"))
    except ValueError:
        return 0.0
    if whose not in (0, os.getpid()):
        return 0.0  # A parent's, which the environment was inherited from.
    return limit_us / 1e6


def _line(text: str) -> str:
    return text.partition("\n")[0]


def _address() -> str:
    address = os.environ.get("NOTIFY_SOCKET", "")
    return address if address[:1] in ("/", "@") else ""


def _notify(state: str) -> None:
    address = _address()
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # The abstract namespace.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
        notify.setblocking(False)  # A manager that does not read must not hold up the daemon.
        notify.connect(address)
        notify.send(state.encode())
