"""Admit or refuse a worker by how well it is confined, and log what is missing."""

from __future__ import annotations

from typing import Literal

import structlog

from wasmkilnd.model import Isolation, LayerState

log = structlog.get_logger("wasmkilnd.engines")


Level = Literal["strict", "required", "best-effort"]

# The states that strict isolation does not accept of a layer. Landlock's first version covers
# files; what later ones add, TCP and signals, namespaces and seccomp refuse as well.
_NOT_STRICT = {
    "seccomp": (LayerState.MISSING, LayerState.PARTIAL),
    "root": (LayerState.MISSING, LayerState.PARTIAL),
    "landlock": (LayerState.MISSING,),
}


class NotConfined(Exception):  # noqa: N818 - a state of the worker
    """Jobs of a worker are not confined enough; the message says why, and what to do."""


class IsolationGuard:
    """Judges each worker before its first job, and logs once what is missing."""

    def __init__(self, level: Level) -> None:
        """Admit workers that meet ``level``, which is the setting ``isolation``."""
        self.level = level
        self.refused: dict[str, str] = {}
        """By engine, why its last refused worker was refused."""
        self._weakest: dict[str, Isolation] = {}
        self._logged: set[tuple[str, ...]] = set()

    def admit(self, engine_id: str, isolation: Isolation) -> None:
        """Admit a worker. Raises NotConfined where it is not confined enough."""
        self._log_what_is_missing(engine_id, isolation)
        if why := self._why_not(isolation):
            self.refused[engine_id] = why
            raise NotConfined(why)
        before = self._weakest.get(engine_id)
        if before is None or _strength(isolation) < _strength(before):
            self._weakest[engine_id] = isolation

    def of(self, engine_id: str) -> Isolation:
        """Return the isolation of an engine's least confined worker since the daemon started."""
        return self._weakest.get(engine_id, Isolation())

    @property
    def summary(self) -> str:
        """How the jobs of all engines are confined, in one line."""
        found = list(self._weakest.values())
        if not all(each.holds for each in found):
            holes = sorted({hole for each in found for hole in each.holes})
            return f"not confined: they could {', '.join(holes) or 'do anything'}"
        names = [layer.name for each in found[:1] for layer in each.layers]
        gaps = {gap.name: gap.state.value for each in found for gap in each.gaps}
        return "confined by " + ", ".join(
            f"{name} ({gaps[name]})" if name in gaps else name for name in names
        )

    @property
    def required(self) -> bool:
        """Whether an engine is served only if its jobs are confined."""
        return self.level != "best-effort"

    def _why_not(self, isolation: Isolation) -> str:
        if not isolation.holds and self.required:
            return (
                f"its jobs are not confined, and could {_holes(isolation)} ({_gaps(isolation)});"
                " set WASMKILN_ISOLATION=best-effort to serve it anyway"
            )
        lacking = [
            each for each in isolation.layers if each.state in _NOT_STRICT.get(each.name, ())
        ]
        if lacking and self.level == "strict":
            layers = "; ".join(f"{gap.name} is {gap.state.value}: {gap.detail}" for gap in lacking)
            return (
                f"strict isolation needs seccomp, Landlock and a changed root, but {layers}; let"
                " the machine or its container allow it, or set WASMKILN_ISOLATION=required"
            )
        return ""

    def _log_what_is_missing(self, engine_id: str, isolation: Isolation) -> None:
        for gap in isolation.gaps:
            if self._first_time(gap.name, gap.state.value, gap.detail):
                log.warning(
                    "a layer of isolation is not in force",
                    layer=gap.name,
                    state=gap.state.value,
                    cause=gap.detail,
                )
        if not isolation.holds and self._first_time(engine_id, *isolation.holes):
            log.error(
                "jobs are not confined", engine=engine_id, could=isolation.holes or "anything"
            )

    def _first_time(self, *what: str) -> bool:
        new = what not in self._logged
        self._logged.add(what)
        return new


def _strength(isolation: Isolation) -> tuple[int, int]:
    return -len(isolation.holes), -len(isolation.gaps)


def _holes(isolation: Isolation) -> str:
    return ", ".join(isolation.holes) or "do anything"


def _gaps(isolation: Isolation) -> str:
    return "; ".join(f"{gap.name}: {gap.detail}" for gap in isolation.gaps) or "no layer is missing"
