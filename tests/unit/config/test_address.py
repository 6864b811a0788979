"""Addresses to listen on."""

from __future__ import annotations

import pytest
from wasmkilnd.settings import Address


@pytest.mark.parametrize(
    ("text", "canonical", "local"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051", True),
        ("localhost:1", "localhost:1", True),
        ("[::1]:65535", "[::1]:65535", True),
        ("[0:0::1]:7", "[::1]:7", True),
        ("[::]:1", "[::]:1", False),
        ("kiln.example.org:1", "kiln.example.org:1", False),
        ("unix:///run/a.sock", "unix:/run/a.sock", True),
    ],
)
def test_an_address_is_read_and_written(text: str, canonical: str, local: bool) -> None:
    address = Address.parse(text)
    assert str(address) == canonical
    assert address.local is local


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an address"),
        ("localhost", "not an address"),
        ("127.0.0.1:65536", "not an address"),
        ("::1:50051", "not an address"),
        ("[127.0.0.1]:1", "not an address"),
        (":50051", "not an address"),
        ("256.0.0.1:1", "not an address"),
        ("127.1:1", "not an address"),
        ("unix:relative.sock", "absolute"),
        ("unix:/" + "x" * 107, "107 bytes"),
    ],
)
def test_what_is_no_address_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Address.parse(text)
