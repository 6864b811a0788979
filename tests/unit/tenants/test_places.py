"""The names and paths of namespaces, which are part of the format of stored values."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkiln.host_layout import namespace_path
from wasmkilnd.cache.value.names import KeyNames, namespace_prefix
from wasmkilnd.model import CacheKey

KEY = CacheKey("a" * 64, "b" * 64)


def test_the_default_namespace_has_the_names_of_a_daemon_without_namespaces() -> None:
    assert namespace_prefix("wasm:", "") == "wasm:"
    assert namespace_path(Path("/store"), "") == Path("/store")


def test_a_namespace_has_names_of_its_own() -> None:
    names = KeyNames(namespace_prefix("wasm:", "team-a"))
    assert names.artifact(KEY) == b"wasm:ns:team-a:compiled:{%b}:%b" % (b"a" * 64, b"b" * 64)
    assert names.mark("") == b"wasm:ns:team-a:mark:all"
    assert namespace_path(Path("/store"), "team-a") == Path("/store/ns/team-a")


def test_no_name_of_one_namespace_is_one_of_another() -> None:
    default, mine = KeyNames("wasm:"), KeyNames(namespace_prefix("wasm:", "a"))
    other = KeyNames(namespace_prefix("wasm:", "a-b"))
    for name in (mine.artifact(KEY), mine.module("a" * 64), mine.artifact_part(KEY, "c" * 64)):
        assert mine.is_value(name)
        assert not default.is_value(name)
        assert not other.is_value(name)
        assert default.is_of_namespace(name)
    for name in (mine.lease(KEY), mine.strike(KEY), mine.mark("a" * 64)):
        assert default.lease_key(name) is default.strike_key(name) is None
        assert not default.is_mark(name)
        assert default.is_of_namespace(name)
    assert not default.is_of_namespace(default.artifact(KEY))


@pytest.mark.parametrize(
    "name", ["..", "A", "a/b", "a:b", "-a", "a" * 64, "a\n", "ä", "*", "a b", ".", "a."]
)
def test_what_is_no_name_leads_nowhere(name: str) -> None:
    with pytest.raises(ValueError, match="expected a namespace"):
        namespace_path(Path("/store"), name)
