"""What systemd is told of a daemon's life: sd_notify(3), without the library.

Does nothing where no service manager asked for it. A datagram to a socket is all there
is to it, and systemd promises that it stays so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


def ready(detail: str) -> None:
    """Tell that calls are served, or that a reload is over; ``detail`` is for people."""
    _notify(f"READY=1\nSTATUS={detail.splitlines()[0]}")


def reloading() -> None:
    """Tell that the configuration is being read anew."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}")


def stopping() -> None:
    """Tell that the daemon is ending."""
    _notify("STOPPING=1\nSTATUS=draining")


def _notify(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # The abstract namespace.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
        notify.connect(address)
        notify.send(state.encode())
