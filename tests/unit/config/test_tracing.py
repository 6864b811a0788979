"""Where traces go, as a person writes it."""

from __future__ import annotations

import pytest
from wasmkilnd.settings_loader import ConfigError, load

HOME = {"HOME": "/h"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", ""),
        ("http://localhost:4317", "http://localhost:4317"),
        (" https://otel.example.com ", "https://otel.example.com:4317"),
        ("http://[::1]:14317/", "http://[::1]:14317"),
    ],
)
def test_it_is_a_url(written: str, meant: str) -> None:
    assert load({"trace_endpoint": written}, HOME).settings.trace_endpoint == meant


@pytest.mark.parametrize(
    "written",
    [
        *("localhost:4317", "grpc://h:1", "http://", "http://h:port", "http://h:1/v1/traces"),
        *("http://h:99999", "http://h?x", "http://[::1"),
    ],
)
def test_nothing_else_is(written: str) -> None:
    with pytest.raises(ConfigError, match="write http://host:port or https://host:port"):
        load({"trace_endpoint": written}, HOME)


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="put the token of the collector into") as refused:
        load({"trace_endpoint": "https://bob:hunter2@h:1"}, HOME)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("written", ["1.5", "-0.1", "half", "nan"])
def test_a_ratio_is_a_part(written: str) -> None:
    with pytest.raises(ConfigError, match="write a number from 0 to 1"):
        load({"trace_sample_ratio": written}, HOME)
    assert load({"trace_sample_ratio": "0.25"}, HOME).settings.trace_sample_ratio == 0.25


def test_headers_are_not_sent_over_plaintext_to_another_machine() -> None:
    for safe in ("http://127.0.0.1:4317", "http://localhost:4317", "https://h:4317"):
        load({"trace_endpoint": safe, "trace_headers_file": "/f"}, HOME)
    with pytest.raises(ConfigError, match=r"trace_headers_file.*use an https:// endpoint"):
        load({"trace_endpoint": "http://h:4317", "trace_headers_file": "/f"}, HOME)
