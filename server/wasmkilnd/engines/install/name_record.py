"""What engines' names stand for, kept over restarts: ``<state_dir>/engine-names.json``.

The daemon writes it when names are resolved, and ``wasmkilnd engine use`` changes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import structlog

from wasmkilnd.ownership import check_path
from wasmkilnd.whole_files import write_whole

log = structlog.get_logger("wasmkilnd.engines")

_VERSION = 1
_MAX_BYTES = 64 * 1024
_UNUSABLE = (LookupError, OSError, RecursionError, TypeError, ValueError, AttributeError)
_WORD = re.compile(r"[a-z][0-9A-Za-z.+!_-]{0,127}")


class NameRecord:
    """The record in a state directory. Every method may block, and raises NotOurs."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / "engine-names.json"

    def read(self) -> dict[str, str]:
        """Return an id by name; nothing where there is no record, or a damaged one."""
        check_path(self._file)
        try:
            with self._file.open("rb") as file:
                document = json.loads(file.read(_MAX_BYTES))
            if document["version"] != _VERSION:
                raise ValueError("it is of another version")
            names = {str(name): str(each) for name, each in document["names"].items()}
        except FileNotFoundError:
            return {}
        except _UNUSABLE as failure:
            log.error(
                "cannot read what engines' names stand for: names stand for the newest versions",
                file=str(self._file),
                cause=str(failure) if isinstance(failure, OSError) else "it is damaged",
            )
            return {}
        return {k: v for k, v in names.items() if _WORD.fullmatch(k) and _WORD.fullmatch(v)}

    def write(self, names: Mapping[str, str]) -> None:
        """Replace the record. Raises OSError."""
        check_path(self._file)
        document = {"version": _VERSION, "names": dict(sorted(names.items()))}
        write_whole(self._file, json.dumps(document, indent=1).encode() + b"\n")
