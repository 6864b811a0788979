"""Where the daemon is: argument over environment over default."""

from __future__ import annotations

import pytest
from wasmkiln import Client
from wasmkiln.client import choose_max_artifact_bytes, choose_timeout_s, parse_size
from wasmkiln.credentials import choose_address
from wasmkilnd.settings import parse_bytes


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WASMKILN_ADDRESS", raising=False)
    monkeypatch.delenv("WASMKILN_TIMEOUT_S", raising=False)


@pytest.mark.parametrize(
    "text", ["1", "256MiB", "1gb", "1.5GiB", " 64 KiB ", "0", "-1", "1.0001KiB", "1TiB", "9" * 30]
)
def test_sizes_are_those_of_the_daemon(text: str) -> None:
    try:
        expected = parse_bytes(text.strip())
    except ValueError:
        expected = 0
    if expected > 0:
        assert parse_size(text) == expected
    else:
        with pytest.raises(ValueError, match="is not a size"):
            parse_size(text)


def test_the_limit_on_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WASMKILN_MAX_ARTIFACT_BYTES", raising=False)
    assert choose_max_artifact_bytes(None) == 2**30
    monkeypatch.setenv("WASMKILN_MAX_ARTIFACT_BYTES", "2MiB")
    assert choose_max_artifact_bytes(None) == 2**21
    assert choose_max_artifact_bytes(7) == 7


def test_more_than_a_year_is_a_year() -> None:
    assert choose_timeout_s(1e300) == 365 * 24 * 3600


def test_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_address("") == "127.0.0.1:50051"
    monkeypatch.setenv("WASMKILN_ADDRESS", "unix:/run/kiln.sock")
    assert choose_address("") == "unix:/run/kiln.sock"
    assert choose_address("kiln:1") == "kiln:1"


def test_a_url_is_refused() -> None:
    with pytest.raises(ValueError, match="an address is host:port or unix:/path, with a port"):
        choose_address("http://localhost:50051")
    assert choose_address("unix:///run/kiln.sock") == "unix:///run/kiln.sock"


@pytest.mark.parametrize("address", ["localhost", "10.0.0.1", "h:0", "h:99999", "h:http", ":1"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="with a port from 1 to 65535"):
        choose_address(address)


@pytest.mark.parametrize(
    "address", ["[::1]:50051", "dns:///kiln", "ipv4:127.0.0.1:1", "kiln:65535"]
)
def test_other_addresses_are_for_grpc(address: str) -> None:
    assert choose_address(address) == address


def test_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_timeout_s(None) == 60
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "2.5")
    assert choose_timeout_s(None) == 2.5
    assert choose_timeout_s(9) == 9


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_an_impossible_timeout_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", text)
    with pytest.raises(ValueError, match="WASMKILN_TIMEOUT_S"):
        choose_timeout_s(None)


def test_impossible_arguments() -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        Client(timeout_s=0)
    with pytest.raises(ValueError, match="max_attempts"):
        Client(max_attempts=0)
