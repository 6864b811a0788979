"""Which workers are let in, given how well they are confined, and who is told."""

from __future__ import annotations

from typing import Literal

import structlog

from wasmkilnd.model import Isolation, LayerState

log = structlog.get_logger("wasmkilnd.engines")


Level = Literal["strict", "required", "best-effort"]

# What each layer must not be under strict. Landlock's first version covers files; what later ones
# add, TCP and signals, the namespaces and seccomp refuse as well.
_NOT_STRICT = {
    "seccomp": (LayerState.MISSING, LayerState.PARTIAL),
    "root": (LayerState.MISSING, LayerState.PARTIAL),
    "landlock": (LayerState.MISSING,),
}


class NotConfined(Exception):  # noqa: N818 - says what the worker is
    """A worker's jobs could do what they should not; the message says what, and what to do."""


class IsolationGuard:
    """Judges every worker of every engine before its first job, and says once what is missing."""

    def __init__(self, level: Level) -> None:
        """Let workers in as ``level`` says; it is the setting ``isolation``."""
        self.level = level
        self.refused: dict[str, str] = {}
        """The engines of which a worker was not let in, and why the last was not."""
        self._weakest: dict[str, Isolation] = {}
        self._said: set[tuple[str, ...]] = set()

    def admit(self, engine_id: str, isolation: Isolation) -> None:
        """Let a worker in. Raises NotConfined where it is confined less than it has to be."""
        self._say_what_is_missing(engine_id, isolation)
        if why := self._why_not(isolation):
            self.refused[engine_id] = why
            raise NotConfined(why)
        before = self._weakest.get(engine_id)
        if before is None or _strength(isolation) < _strength(before):
            self._weakest[engine_id] = isolation

    def of(self, engine_id: str) -> Isolation:
        """Return how the least confined worker of an engine was, of all since the start."""
        return self._weakest.get(engine_id, Isolation())

    @property
    def summary(self) -> str:
        """How the jobs of all engines are confined, in a few words."""
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
        """Whether an engine whose jobs are not confined is not served."""
        return self.level != "best-effort"

    def _why_not(self, isolation: Isolation) -> str:
        if not isolation.holds and self.required:
            return (
                f"its jobs are not confined, and could {_holes(isolation)} ({_gaps(isolation)});"
                " set WASMKILN_ISOLATION=best-effort to serve it all the same"
            )
        lacking = [one for one in isolation.layers if one.state in _NOT_STRICT.get(one.name, ())]
        if lacking and self.level == "strict":
            layers = "; ".join(f"{one.name} is {one.state.value}: {one.detail}" for one in lacking)
            return (
                f"strict isolation needs seccomp, Landlock and a changed root, and {layers}; make"
                " the machine or its container allow it, or set WASMKILN_ISOLATION=required"
            )
        return ""

    def _say_what_is_missing(self, engine_id: str, isolation: Isolation) -> None:
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
        new = what not in self._said
        self._said.add(what)
        return new


def _strength(isolation: Isolation) -> tuple[int, int]:
    return -len(isolation.holes), -len(isolation.gaps)


def _holes(isolation: Isolation) -> str:
    return ", ".join(isolation.holes) or "do anything"


def _gaps(isolation: Isolation) -> str:
    return "; ".join(f"{gap.name}: {gap.detail}" for gap in isolation.gaps) or "no layer is missing"
