"""Redis URLs: what they may hold, and that their credentials are never told."""

from __future__ import annotations

import pytest
from wasmkilnd.cache.connect import BadRedisUrl, connect, masked


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:7000/3", {"host": "h", "port": 7000, "db": 3}),
        ("redis://u:p%2Fw@h", {"host": "h", "username": "u", "password": "p/w"}),
        ("rediss://h", {"host": "h"}),
        ("unix://:pw@/run/r.sock?db=2", {"path": "/run/r.sock", "password": "pw", "db": 2}),
    ],
)
async def test_what_a_url_says_is_done(url: str, expected: dict[str, object]) -> None:
    server = connect(url, connect_timeout_s=1.5, timeout_s=2.5)
    options = server._client.connection_pool.connection_kwargs
    assert {name: options.get(name) for name in expected} == expected
    assert options["socket_connect_timeout"] == 1.5
    assert options["socket_timeout"] == 2.5
    assert options["decode_responses"] is False
    assert options["retry"].get_retries() == 0
    await server.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter/2@h",
        "redis://:hunter2@h:port",
        "redis://:hunter2@[h",
        "http://:hunter2@h",
        "hunter2",
        "redis://:hunter2@h?decode_responses=true",
        "redis://h?password=hunter2",
        "unix://:hunter2@/s?ssl_cert_reqs=none",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(BadRedisUrl) as raised:
        connect(url)
    assert "hunter" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hunter2@h:7000/3", "redis://h:7000/3"),
        ("rediss://:hunter2@h", "rediss://h"),
        ("unix://:hunter2@/run/r.sock?db=2", "unix:///run/r.sock"),
        ("redis://:hunter/2@h", None),
        ("redis://:hunter#2@h", None),
        ("redis://:hunter?2@h", None),
        ("redis://:hunter2@[h", None),
        ("redis://h?password=hunter2", "redis://h"),
    ],
)
def test_a_masked_url_holds_no_secret(url: str, shown: str | None) -> None:
    assert "hunter" not in masked(url)
    if shown is not None:
        assert masked(url) == shown
