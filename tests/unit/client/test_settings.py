"""Where the daemon is: argument over environment over default."""

from __future__ import annotations

from typing import Any

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


def test_argument_environment_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WASMKILN_MAX_ARTIFACT_BYTES", raising=False)
    for choose, default, variable, text, value, argument in (
        (choose_max_artifact_bytes, 2**30, "MAX_ARTIFACT_BYTES", "2MiB", 2**21, 7),
        (choose_timeout_s, 60, "TIMEOUT_S", "2.5", 2.5, 9),
    ):
        assert choose(None) == default
        monkeypatch.setenv(f"WASMKILN_{variable}", text)
        assert choose(None) == value
        assert choose(argument) == argument
    assert choose_timeout_s(1e300) == 365 * 24 * 3600
    assert choose_address("") == "127.0.0.1:50051"
    monkeypatch.setenv("WASMKILN_ADDRESS", "unix:/run/kiln.sock")
    assert choose_address("") == "unix:/run/kiln.sock"


@pytest.mark.parametrize(
    "address",
    ["[::1]:50051", "dns:///kiln", "ipv4:127.0.0.1:1", "kiln:65535", "unix:///run/kiln.sock"],
)
def test_addresses_are_for_grpc(address: str) -> None:
    assert choose_address(address) == address


@pytest.mark.parametrize(
    "address",
    ["localhost", "10.0.0.1", "h:0", "h:99999", "h:http", ":1", "http://h:50051", "ring:a:1,b:2"],
)
def test_an_address_without_a_port_is_refused(address: str) -> None:
    says = "proxy that routes by" if address.startswith("ring") else "with a port from 1 to 65535"
    with pytest.raises(ValueError, match=says):
        choose_address(address)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_an_impossible_number_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", text)
    monkeypatch.setenv("WASMKILN_MAX_ARTIFACT_BYTES", text)
    with pytest.raises(ValueError, match="WASMKILN_TIMEOUT_S"):
        choose_timeout_s(None)
    with pytest.raises(ValueError, match="WASMKILN_MAX_ARTIFACT_BYTES"):
        choose_max_artifact_bytes(None)


@pytest.mark.parametrize(
    "given",
    [
        *({"max_artifact_bytes": value} for value in (0, -1, True, 1.5, "big")),
        *({"timeout_s": 0}, {"max_attempts": 0}),
    ],
)
def test_impossible_arguments(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Client(**given)
