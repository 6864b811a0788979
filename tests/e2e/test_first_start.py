"""`serve` on a new machine installs engines first: one command, and modules compile."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from tests.e2e import wasm
from tests.e2e.daemon import Daemon
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed, begin_to_serve

LEAN = ("--redis-url", "none", "--host-store-bytes", "0", "--workers", "1")


def without_pip_settings(**environ: str) -> dict[str, str]:
    """Return the environment with these settings of pip, and no others."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "WASMKILN_"))}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", **environ}


def test_serve_alone_is_enough(engines: Installed, tmp_path: Path) -> None:
    with Daemon(tmp_path / "state", LEAN) as daemon, daemon.client() as client:
        served = {each.engine.name for each in client.capabilities().engines}
        assert served == {engine.name for engine in engines}
        assert client.compile(wasm.adder(1)).header.size_bytes
        assert "first start: installing engines" in daemon.log
        assert "wasmtime-50.0.1 is installed" in daemon.log
        assert "SIGHUP" not in daemon.log


def test_without_the_package_index_it_says_what_to_do(tmp_path: Path) -> None:
    # A home without version managers: no CPython 3.10, unless the system has one.
    environ = without_pip_settings(
        PIP_INDEX_URL="http://127.0.0.1:1/",
        HOME=str(tmp_path),
        PATH="/usr/bin:/bin",
        UV_PYTHON_INSTALL_MIRROR="http://127.0.0.1:1/mirror",
    )
    out, err = begin_to_serve(tmp_path / "state", *LEAN, environ=environ).communicate(timeout=300)
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith(f"error: no engine is installed under {tmp_path / 'state'}, and"), err
    assert "wasmtime==" in last
    assert "`wasmkilnd engine install wasmtime` with PIP_INDEX_URL" in last
    assert "Traceback" not in err
    assert "wasmer==" in last or "cannot fetch CPython 3.10" in last
    assert [each.name for each in (tmp_path / "state" / "engines").iterdir()] == [".lock"]


def test_sigterm_ends_an_installation_that_hangs(tmp_path: Path) -> None:
    """Until then systemd learns what takes so long, and is asked to wait."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,  # Connects, and never answers.
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(tmp_path / "notify"))
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        environ = without_pip_settings(PIP_INDEX_URL=index, NOTIFY_SOCKET=str(tmp_path / "notify"))
        process = begin_to_serve(tmp_path / "state", *LEAN, environ=environ)
        silent.settimeout(120)
        asked, _ = silent.accept()
        manager.settimeout(60)
        told = [manager.recv(4096).decode() for _ in range(2)]
        assert told[0] == "STATUS=installing engines\nEXTEND_TIMEOUT_USEC=1800000000"
        assert told[1].startswith("STATUS=installing wasm")
        assert "==" not in told[1]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out == ""
        # pip has ended with it: its end of the connection is closed.
        eventually(lambda: not _open(asked), "pip still runs", 60)
        asked.close()


def _open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    return False
