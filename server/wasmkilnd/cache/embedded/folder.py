"""The folder of the embedded server: its files, and who may read them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import string
import tempfile
import urllib.parse
from pathlib import Path

from wasmkilnd.cache.embedded import guardian
from wasmkilnd.ownership import check_path, make_folder

# sockaddr_un holds 108 bytes, the terminating zero included.
_MAX_SOCKET_PATH_BYTES = 100
_PASSWORD = re.compile(r"[0-9a-f]{64}")
_MAX_LOG_BYTES = 1024 * 1024
_PLAIN_BYTES = frozenset(f"{string.ascii_letters}{string.digits}/._- ".encode())


class ServerFolder:
    """``<state>/redis``: locks, password, configuration, log and data of the server."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir.absolute() / "redis"
        self.log = self.path / "valkey.log"

    def make(self) -> None:
        """Create the folder for its owner only. Raises OSError or NotOurs."""
        make_folder(self.path)
        if self.path.stat().st_uid == os.geteuid():
            self.path.chmod(0o700)  # make_folder accepts one that this user's own group may write.

    def socket(self) -> Path:
        """Return the path of the socket, the same for every daemon of the state directory.

        The kernel limits the length of a socket's path. If the state directory's path is too
        long, use a folder under the temporary directory. Raises OSError or NotOurs.
        """
        path = self.path / "valkey.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
            return path
        name = hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"wasmkiln-{os.geteuid()}-{name}"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Another user may have created it first, or put a symbolic link there.
        check_path(folder, private=True, secret=True)
        return folder / "valkey.sock"

    def url(self) -> str:
        """Return the server's URL, which holds the password."""
        address = urllib.parse.quote(str(self.socket()))
        return f"unix://:{self.password()}@{address}"

    def password(self) -> str:
        """Return the password; create it at the first call. Raises OSError."""
        path = self.path / guardian.PASSWORD
        with contextlib.suppress(FileNotFoundError):
            password = path.read_text(errors="replace")
            if _PASSWORD.fullmatch(password):
                return password
        # Hexadecimal, so that neither the URL nor the configuration has to quote it. A damaged
        # password is replaced: it guards a socket, and no data depends on it.
        _write_private(path, secrets.token_hex(32))
        return path.read_text()

    def write_config(self, limit_bytes: int) -> None:
        """Write the server's configuration; start a new log if the old one is long."""
        data = self.path / guardian.DATA
        data.mkdir(mode=0o700, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        settings = {
            "port": "0",
            "unixsocket": _quoted(self.socket()),
            "unixsocketperm": "700",
            "requirepass": self.password(),
            "dir": _quoted(data),
            "logfile": _quoted(self.log),
            "databases": "1",
            "daemonize": "no",
            # Every write reaches the file within a second, so a killed server loses little.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "256mb",
            # Native code shrinks by half at most, and the processor is for compiling.
            "rdbcompression": "no",
            "save": '""',
            "maxmemory": str(limit_bytes),
            # All that daemons write has a time to live, except what is pinned.
            "maxmemory-policy": "volatile-lru",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        _write_private(self.path / guardian.CONFIG, text)

    def last_log_line(self) -> str:
        """Return the last line of the server's log; an empty string if there is none."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 4096))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _quoted(path: Path) -> str:
    # Quote as the server's configuration does: escape every byte that is not plain.
    escaped = (
        chr(byte) if byte in _PLAIN_BYTES else f"\\x{byte:02x}" for byte in os.fsencode(path)
    )
    return f'"{"".join(escaped)}"'


def _write_private(path: Path, text: str) -> None:
    """Write a file, for its owner only, and replace the old one at once."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
