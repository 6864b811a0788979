"""What a URL says is what is done, and secrets stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from wasmkilnd.cache.redis.connect import NO_ACCESS, AccessUnusable, RedisAccess, connect
from wasmkilnd.cache.redis.server import RedisServer, SingleServer
from wasmkilnd.redis_address import BadRedisUrl


def client_of(server: RedisServer) -> Redis:
    """Return redis-py's client behind one server."""
    assert isinstance(server, SingleServer)
    return server._client


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:7000/3", {"host": "h", "port": 7000, "db": 3}),
        ("redis://h?db=2", {"host": "h", "port": 6379, "db": 2}),
        ("rediss://h?ssl_cert_reqs=none", {"host": "h", "ssl_cert_reqs": "none"}),
        ("unix:///run/r.sock?db=2", {"path": "/run/r.sock", "db": 2}),
        ("redis+sentinel://h,i:1/main/4", {"db": 4}),
    ],
)
async def test_what_a_url_says_is_done(url: str, expected: dict[str, object]) -> None:
    server = connect(url, connect_timeout_s=1.5, timeout_s=2.5)
    options = client_of(server).connection_pool.connection_kwargs
    assert {name: options.get(name) for name in expected} == expected
    assert options["socket_connect_timeout"] == 1.5
    assert options["socket_timeout"] == 2.5
    assert options["decode_responses"] is False
    assert options["retry"].get_retries() == 0
    await server.close()


def credentials_of(url: str, access: RedisAccess = NO_ACCESS) -> tuple[str, ...] | None:
    """Return what a connection would say to be let in."""
    options: dict[str, Any] = client_of(connect(url, access)).connection_pool.connection_kwargs
    provider = options.get("credential_provider")
    return provider.get_credentials() if provider else None


def test_who_says_nothing_is_nobody() -> None:
    assert credentials_of("redis://h") is None
    assert credentials_of("redis://u:p%2Fw@h") == ("u", "p/w")
    assert credentials_of("unix://:pw@/s") == ("pw",)
    assert credentials_of("redis://u@h", RedisAccess(password="pw")) == ("u", "pw")


def test_a_password_file_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    server = connect("redis://u@h", RedisAccess(password_file=str(file)))
    provider = client_of(server).connection_pool.connection_kwargs["credential_provider"]
    assert provider.get_credentials() == ("u", "one")
    file.write_text("two")
    assert provider.get_credentials() == ("u", "two")
    file.unlink()  # As it is for a moment while another takes its place.
    assert provider.get_credentials() == ("u", "two")


@pytest.mark.parametrize("setting", ["redis_ca_file", "redis_password_file"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, setting: str) -> None:
    access = RedisAccess(**{setting.removeprefix("redis_"): str(tmp_path / "missing")})
    with pytest.raises(AccessUnusable, match=f"^{setting}: .*/missing: No such file"):
        connect("rediss://h", access)


def test_authorities_that_are_none_are_told(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("not a certificate")
    with pytest.raises(AccessUnusable, match=r"redis_ca_file: .* is not a PEM certificate"):
        connect("rediss://h", RedisAccess(ca_file=str(file)))


def test_a_url_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(BadRedisUrl):
        connect("redis://:hunter/2@h")


async def test_what_is_kept_shows_no_secret(tmp_path: Path) -> None:
    access = RedisAccess(password="hunter2", sentinel_password="hunter2")
    assert "hunter" not in f"{access!r}"
    for url in ("redis://u@h", "redis+sentinel://h/main", "redis+cluster://h", "https://h"):
        server = connect(url, access)
        assert "hunter" not in f"{server!r} {vars(server)!r}"
        await server.close()
