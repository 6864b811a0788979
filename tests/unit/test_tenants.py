"""Namespaces: how many there may be, their paths, and what they do by themselves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs
from wasmkiln.shared import namespace_path
from wasmkilnd.tenants import MAX_NAMESPACES, OpenTenant, why_not


def test_the_number_of_namespaces_is_bounded() -> None:
    many = {f"n{number}" for number in range(MAX_NAMESPACES + 1)}
    assert "one daemon serves" in why_not(many)
    many.pop()
    assert why_not(many) == ""


# The paths of namespaces, which are part of the layout of the host store


@pytest.mark.parametrize(
    "name", ["..", "A", "a/b", "a:b", "-a", "a" * 64, "a\n", "ä", "*", "a b", ".", "a."]
)
def test_what_is_no_name_leads_nowhere(name: str) -> None:
    with pytest.raises(ValueError, match="expected a namespace"):
        namespace_path(Path("/store"), name)


# What a namespace does by itself, again and again, ends with no defect of one part


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
