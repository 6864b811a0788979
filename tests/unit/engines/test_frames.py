"""Frames: whole or not at all, and never longer than allowed."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
import time

import pytest
from wasmkilnd.engines.child import frames
from wasmkilnd.engines.child.frames import Type


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, 1_000_000])
def test_round_trip(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=frames.send, args=(ours, Type.ARTIFACT, b"x" * size))
        sender.start()
        kind, payload = frames.receive(theirs, size)
        sender.join()
    assert kind is Type.ARTIFACT
    assert payload == b"x" * size


def test_a_process_that_is_stopped_in_the_middle_receives_the_rest() -> None:
    """So do those of a machine that sleeps, and of a container that is paused."""
    ours, theirs = socket.socketpair()
    program = (
        "import socket, sys; from wasmkilnd.engines.child import frames;"
        " _, payload = frames.receive(socket.socket(fileno=int(sys.argv[1])), 10);"
        " raise SystemExit(payload != b'0123456789')"
    )
    with ours, theirs:
        ours.sendall(frames.HEADER.pack(Type.MODULE, 10) + b"01234")
        command = [sys.executable, "-c", program, str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as receiver:
            while any(fcntl.ioctl(ours, termios.TIOCOUTQ, bytes(4))):  # not received
                time.sleep(0.01)
            receiver.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, receiver.pid, os.WSTOPPED)
            receiver.send_signal(signal.SIGCONT)
            time.sleep(0.1)
            ours.sendall(b"56789")
            assert receiver.wait(30) == 0


@pytest.mark.parametrize("sent", [b"", b"\x01", b"\x01\0\0\0\x05abc"])
def test_an_end_in_the_middle(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(sent)
        ours.close()
        with pytest.raises(EOFError):
            frames.receive(theirs, 10)


@pytest.mark.parametrize("kind", Type)
def test_too_long_is_refused_before_it_is_read(kind: Type) -> None:
    limit = (
        2**28
        if kind in (Type.MODULE, Type.ARTIFACT)
        else 0
        if kind in frames._EMPTY
        else frames.MOST_BYTES
    )
    assert frames.parse_header(frames.HEADER.pack(kind, limit), 2**28) == (kind, limit)
    with pytest.raises(frames.FrameError, match="above its limit"):
        frames.parse_header(frames.HEADER.pack(kind, limit + 1), 2**28)
