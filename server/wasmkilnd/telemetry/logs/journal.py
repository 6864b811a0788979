"""How important a line is, for systemd's journal: ``<4>`` before a line says that it is a warning.

systemd names the stream that it reads in JOURNAL_STREAM, as device and inode: so a daemon whose
standard error was sent elsewhere marks nothing. See sd-daemon(3) and systemd.exec(5).
"""

from __future__ import annotations

import os

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def is_journal(descriptor: int) -> bool:
    """Return whether what is written to ``descriptor`` goes to systemd's journal."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    if not stream:
        return False
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def marked(text: str, level: str) -> str:
    """Return ``text`` with the priority of ``level`` before each of its lines."""
    mark = f"<{_PRIORITIES.get(level, _PRIORITIES['error'])}>"
    return "\n".join(f"{mark}{line}" for line in text.split("\n"))
