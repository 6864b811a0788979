"""How well a worker has to be confined, by the setting ``isolation``, before it gets a job."""

from __future__ import annotations

from typing import Literal

import structlog

from wasmkilnd.model import Isolation, LayerState

log = structlog.get_logger("wasmkilnd.engines")

# The layers that strict isolation needs, and the one gap in them that it accepts: Landlock's first
# version covers files; what later ones add, TCP and signals, namespaces and seccomp refuse as well.
_STRICT = ("seccomp", "root", "landlock")
_OLD_LANDLOCK = ("landlock", LayerState.PARTIAL)


class NotConfined(Exception):  # noqa: N818 - a state of the worker
    """Jobs of a worker are not confined enough; the message says why, and what to do."""


class IsolationGuard:
    """Judges each worker before its first job, and logs once what is missing."""

    def __init__(self, level: Literal["strict", "required", "best-effort"]) -> None:
        """Admit workers that meet ``level``, which is the setting ``isolation``."""
        self.level = level
        # Whether an engine is served only if its jobs are confined.
        self.required = level != "best-effort"
        # By engine, why its last refused worker was refused.
        self.refused: dict[str, str] = {}
        self._weakest: dict[str, Isolation] = {}
        self._logged: set[object] = set()

    def admit(self, engine_id: str, isolation: Isolation) -> None:
        """Admit a worker. Raises NotConfined where it is not confined enough."""
        for gap in {*isolation.gaps} - self._logged:
            about = {"layer": gap.name, "state": gap.state.value, "cause": gap.detail}
            log.warning("a layer of isolation is not in force", **about)
        hole = engine_id, _holes(isolation)
        if not isolation.holds and hole not in self._logged:
            log.error(
                "jobs are not confined", engine=engine_id, could=list(isolation.holes) or "anything"
            )
        self._logged |= {*isolation.gaps, hole}
        if why := self._why_not(isolation):
            self.refused[engine_id] = why
            raise NotConfined(why)
        weakest = self._weakest.get(engine_id, isolation)
        self._weakest[engine_id] = max(weakest, isolation, key=_weakness)

    def of(self, engine_id: str) -> Isolation:
        """Return the isolation of an engine's least confined worker since the daemon started."""
        return self._weakest.get(engine_id, Isolation())

    @property
    def summary(self) -> str:
        """How the jobs of all engines are confined, in one line."""
        weakest = max(self._weakest.values(), key=_weakness, default=Isolation())
        if self._weakest and not weakest.holds:
            return f"not confined: they could {_holes(weakest)}"
        gaps = {gap.name: f"{gap.name} ({gap.state.value})" for gap in weakest.gaps}
        return "confined by " + ", ".join(gaps.get(one.name, one.name) for one in weakest.layers)

    def _why_not(self, isolation: Isolation) -> str:
        if not isolation.holds and self.required:
            gaps = "; ".join(f"{gap.name}: {gap.detail}" for gap in isolation.gaps)
            return (
                f"its jobs are not confined, and could {_holes(isolation)}"
                f" ({gaps or 'no layer is missing'});"
                " set WASMKILN_ISOLATION=best-effort to serve it anyway"
            )
        lacking = "; ".join(
            f"{gap.name} is {gap.state.value}: {gap.detail}"
            for gap in isolation.gaps
            if gap.name in _STRICT and (gap.name, gap.state) != _OLD_LANDLOCK
        )
        if lacking and self.level == "strict":
            return (
                f"strict isolation needs seccomp, Landlock and a changed root, but {lacking}; let"
                " the machine or its container allow it, or set WASMKILN_ISOLATION=required"
            )
        return ""


def _weakness(isolation: Isolation) -> tuple[bool, int, int]:
    return not isolation.holds, len(isolation.holes), len(isolation.gaps)


def _holes(isolation: Isolation) -> str:
    return ", ".join(isolation.holes) or "do anything"
