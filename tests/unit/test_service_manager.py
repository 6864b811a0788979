"""What systemd hears, on a real socket."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from wasmkilnd.lifecycle import systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_a_life_as_systemd_hears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    path = f"wasmkiln-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind(f"\0{path}" if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        systemd.ready("ready; one\nX_FORGED=1")
        assert manager.recv(4096) == b"READY=1\nSTATUS=ready; one"
        before_us = time.monotonic_ns() // 1000
        systemd.reloading()
        reloading, _, stamp = manager.recv(4096).decode().partition("\nMONOTONIC_USEC=")
        assert reloading == "RELOADING=1"
        assert before_us <= int(stamp) <= time.monotonic_ns() // 1000
        systemd.stopping()
        assert manager.recv(4096).startswith(b"STOPPING=1\n")


@pytest.mark.parametrize("address", ["", "relative", "/nothing/listens/here"])
def test_nobody_to_tell_is_no_failure(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.ready("ready")
    systemd.stopping()
