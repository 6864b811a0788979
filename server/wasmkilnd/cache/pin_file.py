"""Pins in a file of the state directory: they survive whatever happens to the shared tier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog

from wasmkilnd.cache.value.pins import merge_lists, read_list, write_list
from wasmkilnd.model import PinTimes
from wasmkilnd.whole_files import locked, namespace_file, write_whole

log = structlog.get_logger("wasmkilnd.pins")

# More than 20,000 modules take: as many as there may be, and as many that were unpinned.
_MAX_BYTES = 4 * 1024 * 1024


class PinFile:
    """The pins of one namespace, in ``<state_dir>/pins/``.

    Daemons with the same state directory share it. All methods block, and raise OSError.
    """

    def __init__(self, state_dir: Path, namespace: str) -> None:
        self.path = namespace_file(state_dir / "pins", namespace)

    def read(self) -> dict[str, PinTimes]:
        """Return what the file says; nothing if there is none, or if it is damaged."""
        try:
            with self.path.open("rb") as file:
                text = file.read(_MAX_BYTES)
        except FileNotFoundError:
            return {}
        found = read_list(text)
        if not found and text != write_list({}):
            log.error("the list of pins is damaged: nothing in it is pinned", file=str(self.path))
        return found

    def exchange(self, known: Mapping[str, PinTimes]) -> dict[str, PinTimes]:
        """Return what the file says, and add to it what is ``known`` and missing there."""
        found = self.read()
        if all(found.get(module) == times for module, times in known.items()):
            return found
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        with locked(self.path.parent):
            found = self.read()
            merged = merge_lists(found, known)
            if merged != found:
                write_whole(self.path, write_list(merged))
        return found
