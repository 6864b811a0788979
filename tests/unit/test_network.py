"""Whether a process listens on a Unix socket."""

from __future__ import annotations

import socket
from pathlib import Path

from wasmkilnd.network import is_listening


def test_a_socket_is_in_use_while_a_process_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert not is_listening(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert not is_listening(path)
        listener.listen()
        assert is_listening(path)
    assert path.is_socket()  # As a killed process leaves it.
    assert not is_listening(path)


def test_another_kind_of_file_is_no_socket_in_use(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    assert not is_listening(path)
