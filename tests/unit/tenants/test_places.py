"""The paths of namespaces, which are part of the layout of the host store."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkiln.shared import namespace_path


def test_the_default_namespace_has_the_path_of_a_daemon_without_namespaces() -> None:
    assert namespace_path(Path("/store"), "") == Path("/store")


def test_a_namespace_has_a_path_of_its_own() -> None:
    assert namespace_path(Path("/store"), "team-a") == Path("/store/ns/team-a")


@pytest.mark.parametrize(
    "name", ["..", "A", "a/b", "a:b", "-a", "a" * 64, "a\n", "ä", "*", "a b", ".", "a."]
)
def test_what_is_no_name_leads_nowhere(name: str) -> None:
    with pytest.raises(ValueError, match="expected a namespace"):
        namespace_path(Path("/store"), name)
