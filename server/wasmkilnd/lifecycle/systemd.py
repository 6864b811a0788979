"""Tell systemd when the daemon is ready, reloads or stops: sd_notify(3), without the library.

These functions do nothing where no service manager set NOTIFY_SOCKET. The protocol is a datagram
to that socket, and systemd guarantees it as stable.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


def ready(detail: str) -> None:
    """Say that the daemon serves calls, or that a reload is over; ``detail`` is for people."""
    _notify(f"READY=1\nSTATUS={detail.splitlines()[0]}")


def reloading() -> None:
    """Say that the daemon reads its configuration again."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}")


def stopping() -> None:
    """Say that the daemon is stopping."""
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
