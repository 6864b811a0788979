"""What engines' names stand for, kept over restarts: ``<state_dir>/engine-names.json``.

And which engines were removed, so that their callers are told so. The daemon writes the file when
names are resolved; ``wasmkilnd engine use`` and ``remove`` change it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from wasmkilnd.ownership import check_path
from wasmkilnd.whole_files import write_whole

log = structlog.get_logger("wasmkilnd.engines")

_VERSION = 1
_MAX_BYTES = 64 * 1024
_MAX_REMOVED = 64
_UNUSABLE = (LookupError, OSError, RecursionError, TypeError, ValueError, AttributeError)
_WORD = re.compile(r"[a-z][0-9A-Za-z.+!_-]{0,127}")


class NameRecord:
    """The record in a state directory. Every method may block, and raises NotOurs."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / "engine-names.json"

    def read(self) -> dict[str, str]:
        """Return an id by name; nothing where there is no record, or a damaged one."""
        return self._read()[0]

    def removed(self) -> frozenset[str]:
        """Return the ids of engines that an operator removed, the last ones."""
        return frozenset(self._read()[1])

    def write(self, names: Mapping[str, str]) -> None:
        """Replace what names stand for. Raises OSError."""
        self._write(names, self._read()[1])

    def note_removed(self, engine_id: str) -> None:
        """Remember that an engine was removed. Raises OSError."""
        names, removed = self._read()
        others = [each for each in removed if each != engine_id]
        self._write(names, [*others, engine_id][-_MAX_REMOVED:])

    def _read(self) -> tuple[dict[str, str], list[str]]:
        check_path(self._file)
        try:
            with self._file.open("rb") as file:
                document = json.loads(file.read(_MAX_BYTES))
            if document["version"] != _VERSION:
                raise ValueError("it is of another version")
            names = {str(name): str(each) for name, each in document["names"].items()}
            removed = [str(each) for each in document.get("removed", ())]
        except FileNotFoundError:
            return {}, []
        except _UNUSABLE as failure:
            log.error(
                "cannot read what engines' names stand for: names stand for the newest versions",
                file=str(self._file),
                cause=str(failure) if isinstance(failure, OSError) else "it is damaged",
            )
            return {}, []
        known = {k: v for k, v in names.items() if _WORD.fullmatch(k) and _WORD.fullmatch(v)}
        return known, [each for each in removed if _WORD.fullmatch(each)]

    def _write(self, names: Mapping[str, str], removed: Sequence[str]) -> None:
        document = {"version": _VERSION, "names": dict(sorted(names.items())), "removed": removed}
        write_whole(self._file, json.dumps(document, indent=1).encode() + b"\n")
