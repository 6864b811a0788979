"""Which workers are let in, given how well they are confined, and who is told."""

from __future__ import annotations

import structlog

from wasmkilnd.model import Isolation

log = structlog.get_logger("wasmkilnd.engines")


class NotConfined(Exception):  # noqa: N818 - says what the worker is
    """A worker's jobs could do what they should not; the message says what, and what to do."""


class IsolationGuard:
    """Judges every worker of every engine before its first job, and says once what is missing."""

    def __init__(self, *, required: bool) -> None:
        self.required = required
        self._weakest: dict[str, Isolation] = {}
        self._said: set[tuple[str, ...]] = set()

    def admit(self, engine_id: str, isolation: Isolation) -> None:
        """Let a worker in. Raises NotConfined where isolation is required and does not hold."""
        self._say_what_is_missing(engine_id, isolation)
        if not isolation.holds and self.required:
            raise NotConfined(
                f"its jobs are not confined, and could {_holes(isolation)} ({_gaps(isolation)});"
                " set WASMKILN_ISOLATION=best-effort to serve it all the same"
            )
        before = self._weakest.get(engine_id)
        if before is None or _strength(isolation) < _strength(before):
            self._weakest[engine_id] = isolation

    def of(self, engine_id: str) -> Isolation:
        """Answer how the least confined worker of an engine was, of all since the start."""
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
