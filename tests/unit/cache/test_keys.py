"""Names of keys: what was made is recognised, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.model import CacheKey

NAMES = KeyNames("[a]*:")
A, B, C = "a" * 64, "b" * 64, "c" * 64

digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(digests, digests | st.just(""), digests)
def test_each_name_tells_what_it_is_of(module: str, fingerprint: str, digest: str) -> None:
    key = ValueKey(module, fingerprint)
    value, part = NAMES.value(key), NAMES.part(key, digest)
    assert NAMES.value_at(value) == key
    assert NAMES.part_at(part) == key
    assert NAMES.value_at(part) is None
    assert NAMES.part_at(value) is None
    assert NAMES.lease_key(value) is NAMES.strike_key(value) is None
    assert NAMES.is_value(value)
    assert NAMES.is_value(part)


def test_names_are_those_that_daemons_use() -> None:
    key = CacheKey(A, B)
    assert NAMES.value(ValueKey(A, B)) == NAMES.artifact(key)
    assert NAMES.value(ValueKey(A)) == NAMES.module(A)
    assert NAMES.part(ValueKey(A, B), C) == NAMES.artifact_part(key, C)
    assert NAMES.part(ValueKey(A), C) == NAMES.module_part(A, C)
    assert NAMES.lease_key(NAMES.lease(key)) == key
    assert NAMES.strike_key(NAMES.strike(key)) == key


def test_modules_of_other_formats_are_told_by_their_names() -> None:
    for name in (f"module:{{{A}}}v9", f"part:{{{A}}}:modulev9:{C}"):
        assert NAMES.is_of_other_format(f"[a]*:{name}".encode())
        assert NAMES.value_at(f"[a]*:{name}".encode()) is None
        assert NAMES.part_at(f"[a]*:{name}".encode()) is None
        assert NAMES.is_value(f"[a]*:{name}".encode())
    for own in (NAMES.module(A), NAMES.module_part(A, C), NAMES.artifact(CacheKey(A, B))):
        assert not NAMES.is_of_other_format(own)


@pytest.mark.parametrize(
    "name",
    [
        f"[a]*:compiled:{{{A}}}:{B}x",
        f"[a]*:compiled:{{{A}}}:",
        f"[a]*:compiled:{{{A}}}",
        f"[a]*:compiled:{A}:{B}",
        f"[a]*:compiled:{{{A[1:]}}}:{B}",
        f"[a]*:compiled:{{{A.upper()}}}:{B}",
        f"[a]*:module:{{{A}}}\n",
        f"x[a]*:module:{{{A}}}",
        f"[a]*:part:{{{A}}}:{B}",
        f"[a]*:part:{{{A}}}:modules:{C}",
        f"[a]*:lease:{{{A}}}:module",
        "[a]*:",
        "",
        "[a]*:compiled:\udcff",
    ],
)
def test_other_names_are_nobody_s(name: str) -> None:
    given_name = name.encode(errors="surrogateescape")
    assert NAMES.value_at(given_name) is None
    assert NAMES.part_at(given_name) is None
    assert not NAMES.is_value(given_name)
    assert NAMES.lease_key(given_name) is NAMES.strike_key(given_name) is None
    assert not NAMES.is_of_other_format(given_name)
