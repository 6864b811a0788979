"""Sizes, durations, addresses, URLs and aliases as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkilnd.settings import (
    Address,
    RedisUrl,
    Settings,
    mask,
    parse_bytes,
    parse_count,
    parse_seconds,
    written,
)
from wasmkilnd.settings_loader import ConfigError, load


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (0, 0),
        ("7", 7),
        (" 64 MiB ", 64 * 2**20),
        ("1.5KiB", 1536),
        ("2KB", 2000),
        ("1gib", 2**30),
    ],
)
def test_a_size_is_bytes_or_has_a_suffix(text: object, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "1.1",
        "1 XB",
        "1e3",
        True,
        None,
        0.5,
        "9" * 5000,
        "٣",
    ],
)
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="256MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(30, 30), ("0.25", 0.25), ("500ms", 0.5), ("30s", 30), ("5m", 300), ("7d", 604800)],
)
def test_a_duration_is_seconds_or_has_a_suffix(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "5M", "-1s", False, float("inf"), float("nan"), "1w"])
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="500ms"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["", "two", True, "1.5", "4KiB", None])
def test_what_is_no_count_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_count(text)


def test_what_is_written_reads_back_exactly() -> None:
    for size_bytes in (0, 1, 1000, 1024, 5 * 2**20, 2**30 + 1, 2**30):
        assert parse_bytes(written("a_bytes", size_bytes)) == size_bytes
    for duration_s in (0, 0.5, 1.0, 30, 60, 90, 3600, 604800):
        assert parse_seconds(written("a_s", duration_s)) == duration_s


# Addresses to listen on


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


# A URL with a password that is never shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://u:p@h:1/0", "redis://***:***@h:1/0"),
        ("redis://u:p/a@b?c@h", "redis://***:***@h"),
        ("redis+sentinel://h/s?sentinel_password=p", "redis+sentinel://h/s?***"),
        ("none", "none"),
    ],
)
def test_it_is_shown_without_credentials(url: str, shown: str) -> None:
    assert mask(url) == shown
    assert str(RedisUrl(url)) == shown
    assert f"{RedisUrl(url)!r}" == f"RedisUrl({shown!r})"
    assert RedisUrl(url).get_secret_value() == url


def test_spaces_around_a_url_do_not_count() -> None:
    assert Settings(redis_url=" redis://h ").redis_url.get_secret_value() == "redis://h"  # type: ignore[arg-type]


# The setting engine_alias: which version of an engine its name stands for


def aliases(text: str) -> dict[str, str]:
    return load({}, {"WASMKILN_ENGINE_ALIAS": text, "HOME": "/root"}).settings.engine_aliases


def test_texts_and_tables_say_the_same(tmp_path: Path) -> None:
    wanted = {"wasmer": "wasmer-1.1.0", "wasmtime": "wasmtime-49.0.0"}
    assert aliases(" wasmtime = wasmtime-49.0.0,wasmer=wasmer-1.1.0") == wanted
    file = tmp_path / "a.toml"
    file.write_text('[engine_alias]\nwasmtime = "wasmtime-49.0.0"\nwasmer = "wasmer-1.1.0"\n')
    assert load({}, {"HOME": "/root"}, file).settings.engine_aliases == wanted
    flags = {"engine_alias": ["wasmtime=wasmtime-49.0.0", "wasmer=wasmer-1.1.0"]}
    assert load(flags, {"HOME": "/root"}).settings.engine_aliases == wanted
    assert aliases("") == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("wasmtime", "is not an alias: write an engine's name"),
        ("wasmtime=wasmer-1.1.0", "is not an alias"),
        ("wasmtime=wasmtime", "is not an alias"),
        ("wasmtime=wasmtime-50.0.1,wasmtime=wasmtime-49.0.0", "name, once"),
    ],
)
def test_what_is_no_alias(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        aliases(text)
