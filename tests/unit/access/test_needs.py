"""Every page that the admin server has is a row of the table of access, and no other is."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from wasmkilnd.access.guard import PATHS, AccessGuard
from wasmkilnd.telemetry.admin import AdminServer
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.telemetry.status_page.pages import status_pages
from wasmkilnd.telemetry.status_page.sampler import Sampler

from tests.doubles.status_sources import sources


def test_every_page_has_a_row_and_no_other_has() -> None:
    metrics = Metrics("1.2.3")
    pages = status_pages(sources(metrics), Sampler(metrics))
    never_started = (CollectorRegistry(), lambda: (True, ""), AccessGuard(None), None)
    server = AdminServer("127.0.0.1:0", *never_started, pages=pages)  # type: ignore[arg-type]
    routes = server._runner.app.router.resources()
    assert set(PATHS) == {route.canonical for route in routes}
