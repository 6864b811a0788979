"""What the status page shows of a daemon that is none."""

from __future__ import annotations

from collections.abc import Sequence

from wasmkilnd.model import Isolation, IsolationLayer, LayerState, Strike, UnservedEngine
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.telemetry.status_page.sources import EngineView, Sources

CONFINED = Isolation(
    [IsolationLayer("seccomp", LayerState.ENFORCED, "a filter")], {"open a file": True}
)


def sources(
    metrics: Metrics,
    *,
    host: str = "kiln-1",
    state: tuple[bool, str] = (True, "ready"),
    engines: Sequence[EngineView] = (),
    unserved: Sequence[UnservedEngine] = (),
    strikes: Sequence[Strike] = (),
    isolation: str = "confined by seccomp",
    isolation_required: bool = True,
) -> Sources:
    """Return the sources of a page, all of them well unless said otherwise."""
    return Sources(
        host=host,
        metrics=metrics,
        state=lambda: state,
        engines=lambda: engines,
        unserved=lambda: unserved,
        isolation=lambda: isolation,
        isolation_required=isolation_required,
        quarantined=lambda: strikes,
        namespaces=lambda: 1,
    )
