"""A URL with a password that is never shown."""

from __future__ import annotations

import pytest
from wasmkilnd.settings import RedisUrl, mask, parse_redis_url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "none",
        "redis://h",
        "redis://h:6379/0",
        "rediss://user:p%40ss@h:1/15",
        "redis://[::1]:6379",
        "unix:///run/redis.sock",
        "unix://user:pass@/run/redis.sock?db=2",
        "redis+sentinel://h,i:26379/main",
        "rediss+cluster://h:7000,i:7001",
        "https://:token@h.example",
    ],
)
def test_known_urls_are_taken(url: str) -> None:
    assert parse_redis_url(f" {url} ") == url


@pytest.mark.parametrize(("url", "why"), [("ftp://:hunter2@h", "no known scheme"), (5, "a string")])
def test_others_are_refused_without_their_secret(url: object, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_redis_url(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://u:p@h:1/0", "redis://***:***@h:1/0"),
        ("redis://:p@h", "redis://***:***@h"),
        ("redis://u:p/a@b?c@h", "redis://***:***@h"),
        ("redis+sentinel://h/s?sentinel_password=p", "redis+sentinel://h/s?***"),
        ("none", "none"),
        ("", ""),
    ],
)
def test_it_is_shown_without_credentials(url: str, shown: str) -> None:
    assert mask(url) == shown
    assert str(RedisUrl(url)) == shown
    assert f"{RedisUrl(url)!r}" == f"RedisUrl({shown!r})"
    assert RedisUrl(url).get_secret_value() == url
