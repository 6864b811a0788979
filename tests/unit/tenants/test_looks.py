"""What a namespace does by itself, again and again, ends with no defect of one part."""

from __future__ import annotations

from types import SimpleNamespace

from structlog.testing import capture_logs
from wasmkilnd.tenants import OpenTenant


async def test_a_defect_in_one_look_ends_no_other() -> None:
    saved: list[bool] = []

    async def look() -> None:
        raise RuntimeError("a defect")

    async def save() -> None:
        saved.append(True)

    opened, pins = OpenTenant.__new__(OpenTenant), SimpleNamespace(look=look)
    parts = {"tenant": SimpleNamespace(pins=pins), "usage": SimpleNamespace(save=save)}
    vars(opened).update(**parts, _sealer=SimpleNamespace(max_age_s=0.0))
    with capture_logs() as logs:
        await opened.look()
    assert saved == [True]
    [line] = logs
    assert line["event"] == "a defect keeps pins or uses from being looked after"
