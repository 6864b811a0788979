"""Orders to compile what an old engine's callers use for a new one, before names stand for it.

``<state_dir>/warm-ups/<new engine>.json`` is an order. It stays until the work is done, so a daemon
that is restarted in the middle goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from wasmkilnd.ownership import check_path
from wasmkilnd.usage import MAX_USES
from wasmkilnd.whole_files import write_whole

log = structlog.get_logger("wasmkilnd.engines")

_VERSION = 1
_MAX_BYTES = 4096
_MAX_ORDERS = 64
_UNUSABLE = (ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError)
_ENGINE_ID = re.compile(r"[a-z]+-[0-9A-Za-z.+!-]{1,80}")


@dataclass(frozen=True, slots=True)
class WarmOrder:
    """What to compile before names stand for an engine."""

    engine_id: str
    from_engine_id: str
    top: int
    """How many of the artifacts that are used most."""


class WarmOrders:
    """The orders in a state directory. Every method may block."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "warm-ups"

    def write(self, order: WarmOrder) -> None:
        """Write an order, in the place of an earlier one for the same engine.

        Raises OSError, and NotOurs where a daemon would refuse to read it.
        """
        check_path(self._folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        document = {"version": _VERSION, "from": order.from_engine_id, "top": order.top}
        write_whole(self._file(order.engine_id), json.dumps(document).encode() + b"\n")

    def read(self, engine_ids: Collection[str]) -> list[WarmOrder]:
        """Return the orders for these engines. Raises NotOurs.

        Pass over what is no order; the log says so, since names do not wait for that engine.
        """
        check_path(self._folder)
        found = []
        for engine_id in sorted(engine_ids)[:_MAX_ORDERS]:
            try:
                with self._file(engine_id).open("rb") as file:
                    document = json.loads(file.read(_MAX_BYTES))
                old, top = document["from"], document["top"]
                if document["version"] != _VERSION or not _ENGINE_ID.fullmatch(old):
                    raise ValueError("it is of another version, or names no engine")
                found.append(WarmOrder(engine_id, old, max(1, min(int(top), MAX_USES))))
            except FileNotFoundError:
                continue
            except _UNUSABLE as failure:
                log.error(
                    "cannot use the order of a warm-up: names do not wait for it",
                    engine=engine_id,
                    cause=str(failure) if isinstance(failure, OSError) else "it is damaged",
                    advice="write it again: wasmkilnd engine install … --warm-from …",
                )
        return found

    def remove(self, engine_id: str) -> None:
        """Remove the order for an engine, if there is one. Raises OSError."""
        self._file(engine_id).unlink(missing_ok=True)

    def _file(self, engine_id: str) -> Path:
        if not _ENGINE_ID.fullmatch(engine_id):
            raise ValueError(f"{engine_id!r:.80} is no engine's id")
        return self._folder / f"{engine_id}.json"
