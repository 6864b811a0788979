"""Hand the daemon's parts to the status page."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

from wasmkilnd.lifecycle.engines import Serving
from wasmkilnd.lifecycle.readiness import Readiness
from wasmkilnd.telemetry.admin import Page
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.telemetry.status_page.pages import status_pages
from wasmkilnd.telemetry.status_page.sampler import Sampler
from wasmkilnd.telemetry.status_page.sources import EngineView, Sources
from wasmkilnd.tenants import Tenants


class StatusPage:
    """The status page of a daemon, and the history that it shows."""

    def __init__(
        self, metrics: Metrics, readiness: Readiness, started: Serving, tenants: Tenants
    ) -> None:
        """Begin the history now."""
        self.sampler = Sampler(metrics)
        self._sources = Sources(
            host=platform.node(),
            metrics=metrics,
            state=readiness.now,
            engines=lambda: _engines(started),
            unserved=lambda: started.unserved,
            isolation=lambda: started.isolation.summary,
            isolation_required=started.isolation.required,
            quarantined=tenants.known_in_quarantine,
            namespaces=lambda: len(tenants.opened),
        )

    @property
    def pages(self) -> Mapping[str, Page]:
        """The pages by path."""
        return status_pages(self._sources, self.sampler)


def _engines(started: Serving) -> Sequence[EngineView]:
    default = started.registry.default
    return [
        EngineView(
            engine.id,
            engine.capabilities.interpreter,
            engine.id == default,
            started.isolation.of(engine.id),
            [row.text for row in started.advisories.current.of(engine)],
        )
        for engine in started.registry.served
    ]
