"""A URL with a password that is never shown."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from wasmkilnd.settings import RedisUrl, Settings, mask


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://h:6379/0",
        "rediss://user:p%40ss@h:1/15",
        "redis://[::1]:6379",
        "unix://user:pass@/run/redis.sock?db=2",
        "redis+sentinel://h,i:26379/main",
        "rediss+cluster://h:7000,i:7001",
        "https://:token@h.example",
    ],
)
def test_known_urls_are_taken(url: str) -> None:
    assert Settings(redis_url=f" {url} ").redis_url.get_secret_value() == url  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "why"), [("ftp://:hunter2@h", "no known scheme"), (5, "a valid string")]
)
def test_others_are_refused_without_their_secret(url: Any, why: str) -> None:
    with pytest.raises(ValidationError, match=why) as caught:
        Settings(redis_url=url)
    assert "hunter2" not in str(caught.value)


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
