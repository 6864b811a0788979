"""Uses in the state directory, for daemons without a shared tier."""

from __future__ import annotations

from pathlib import Path

import structlog

from wasmkilnd.cache.value.use_records import MAX_RECORD_BYTES, from_json, to_json
from wasmkilnd.ownership import NotOurs, check_path
from wasmkilnd.uses import Uses
from wasmkilnd.whole_files import locked, namespace_file, write_whole

log = structlog.get_logger("wasmkilnd.usage")


class UseFile:
    """The sums of all daemons that share a state directory, for one namespace. May block."""

    def __init__(self, state_dir: Path, namespace: str) -> None:
        self._path = namespace_file(state_dir / "uses", namespace)
        self._logged = ""

    def add(self, uses: Uses) -> bool:
        """Add ``uses`` to the file; return whether that was possible. The log says why not."""
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            check_path(self._path)
            with locked(self._path.parent):
                whole = self._read()
                whole.add(uses)
                write_whole(self._path, to_json(whole))
        except (OSError, NotOurs) as failure:
            if str(failure) != self._logged:
                self._logged = str(failure)
                log.warning("cannot save uses", cause=self._logged)
            return False
        self._logged = ""
        return True

    def read(self) -> Uses:
        """Return what is in the file; nothing if it cannot be read."""
        try:
            check_path(self._path)
            return self._read()
        except (OSError, NotOurs):
            return Uses()

    def _read(self) -> Uses:
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_RECORD_BYTES + 1)
        except FileNotFoundError:
            return Uses()
        read = from_json(text) if len(text) <= MAX_RECORD_BYTES else None
        return read[0] if read else Uses()
