"""Every page that the admin server has is a row of the table of access, and no other is."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from wasmkilnd.access.guard import PATHS, AccessGuard
from wasmkilnd.telemetry.admin import AdminServer
from wasmkilnd.telemetry.audit import Audit


def test_every_page_has_a_row_and_no_other_has() -> None:
    never_started = (CollectorRegistry(), bytes, lambda: (True, ""), AccessGuard(None).admit)
    server = AdminServer("127.0.0.1:0", *never_started, Audit())
    routes = server._runner.app.router.resources()
    assert set(PATHS) == {route.canonical for route in routes}
