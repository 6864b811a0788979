"""Namespaces: how memory and disk are divided, their paths, and what they do by themselves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs
from wasmkiln.shared import namespace_path
from wasmkilnd import tenants
from wasmkilnd.access.policy import NamespaceLimits
from wasmkilnd.tenants import MAX_NAMESPACES, OpenTenant, shares

EQUAL = NamespaceLimits()


def why_not(memory_bytes: int, host_bytes: int, named: dict[str, NamespaceLimits]) -> str:
    settings: Any = SimpleNamespace(
        memory_bytes=memory_bytes, effective_host_store_bytes=host_bytes
    )
    return tenants.why_not(settings, named)


def test_a_namespace_that_names_a_number_gets_it_and_the_others_divide_the_rest() -> None:
    found = shares(
        1000,
        4000,
        {"a": NamespaceLimits(memory_bytes=600), "b": NamespaceLimits(host_store_bytes=3000)},
    )
    assert found == {"": (200, 500), "a": (600, 500), "b": (200, 3000)}


def test_what_is_off_stays_off() -> None:
    found = shares(1000, 0, {"a": NamespaceLimits(host_store_bytes=3000)})
    assert {host_bytes for _, host_bytes in found.values()} == {0}
    assert why_not(1000, 0, {"a": NamespaceLimits(host_store_bytes=3000)}) == ""


def test_what_does_not_fit_is_refused_with_the_setting_to_change() -> None:
    both = {
        "a": NamespaceLimits(memory_bytes=600, host_store_bytes=10),
        "b": NamespaceLimits(memory_bytes=400, host_store_bytes=10),
    }
    assert "raise the setting memory_bytes" in why_not(1000, 4000, both)
    assert "raise the setting host_store_bytes" in why_not(2000, 20, both)
    assert why_not(1001, 4000, both) == ""


def test_the_number_of_namespaces_is_bounded() -> None:
    many = {f"n{number}": EQUAL for number in range(MAX_NAMESPACES + 1)}
    assert "one daemon serves" in why_not(10**9, 10**9, many)
    many.popitem()
    assert why_not(10**9, 10**9, many) == ""


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
