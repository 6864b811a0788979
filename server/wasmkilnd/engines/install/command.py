"""Run a command of an installation, and say in one sentence why it failed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

NO_HOME: Final = Path("/nonexistent")
"""The home of a user that has none, by the convention of distributions."""
_TIMEOUT_S = 900


class EngineInstallError(Exception):
    """An engine cannot be installed or removed; the message says why and what to do."""


def home() -> Path:
    """Return the user's home: of a container's number without an entry in passwd, NO_HOME."""
    try:
        return Path.home()
    except RuntimeError:
        return NO_HOME


def _tells(line: str) -> bool:
    # pip's last error names the package; earlier ones tell which files it did not choose. uv
    # writes digests below the line that says what is wrong with them.
    return line.startswith("ERROR") or "Hash mismatch" in line


def run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """Run a command; return its output. Raises EngineInstallError with its last error line.

    ``environ`` is set beside this process's own environment.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            umask=0o022,  # Whatever the caller's is, no other user may write to an engine.
            # Pip does not work without one.
            env={"HOME": str(home()), **inherited, **(environ or {})},
        )
    except subprocess.TimeoutExpired:
        raise EngineInstallError(
            f"`{' '.join(command)}` did not end within {_TIMEOUT_S} s"
        ) from None
    except OSError as failure:
        raise EngineInstallError(f"cannot run {command[0]}: {failure.strerror}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [""]
        words = next((line for line in reversed(lines) if _tells(line)), lines[-1]).strip()
        raise EngineInstallError(
            f"`{' '.join(command)}` failed with exit code {done.returncode}: {words}",
        )
    return done.stdout
