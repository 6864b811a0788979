"""What a URL says is done, what went wrong has a sentence, and secrets stay where they are."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions
from wasmkilnd.errors import CannotUse, PartUnavailable, TierUnavailable, WrongType
from wasmkilnd.redis.servers import (
    RedisAccess,
    RedisServer,
    SingleServer,
    connect,
    described,
    is_outage,
)
from wasmkilnd.redis_address import BadRedisUrl

NO, AWAY = "Redis refuses: ", "cannot reach Redis: "
Reply, Lost = exceptions.ResponseError, exceptions.ConnectionError


def caused(error: Exception, cause: Exception) -> Exception:
    """Return ``error``, raised from ``cause``."""
    error.__cause__ = cause
    return error


def to(command: str, error: Exception) -> Exception:
    """Return ``error`` as the reply to ``command``."""
    error.add_note(command)
    return error


AUTH = "unknown command 'AUTH', with args beginning with: 'app' 'hunter2' "
LOST = "Multiple exceptions: [Errno 111] Connect call failed ('::1', 6379, 0, 0), ..."
TLS = ssl.SSLError(1, "[SSL] wrong version")


@pytest.mark.parametrize(
    ("error", "told", "outage"),
    [
        (PartUnavailable("a node is down"), "a node is down", False),
        (TierUnavailable("nobody answers"), "nobody answers", True),
        (exceptions.ReadOnlyError("hunter2"), f"{NO}it is read-only", False),
        (exceptions.ClusterDownError("hunter2"), f"{NO}the cluster, or the", True),
        (Reply("ERR max requests limit exceeded."), f"{NO}the requests", True),
        (Reply("ERR max daily request limit exceeded"), f"{NO}the req", True),
        (Reply("ERR max request size exceeded"), f"{NO}the value is larger", False),
        (Reply("ERR max single record size exceeded"), f"{NO}the value is", False),
        (Reply(AUTH), "Redis refuses the user or password", True),
        (
            to("EVAL", Reply("unknown command 'EVAL', with args: 'hunter2'")),
            f"{NO}it has no such command (EVAL)",
            False,
        ),
        (
            to("GET", exceptions.NoPermissionError("User hunter has no permissions")),
            f"{NO}this user has no permission (GET)",
            False,
        ),
        (Reply("HUNTER2 hunter2"), f"{NO}it gives no known reason (ResponseError)", False),
        (caused(Lost("hunter2"), TierUnavailable("no Sentinel")), "no Sentinel", True),
        (Reply("No such master with that name"), f"{NO}it knows no primary of that name", False),
        (caused(Lost("hunter2"), TLS), "cannot reach Redis: [SSL] wrong", True),
        (
            OSError(111, "Connect call failed ('10.0.0.1', 6379)"),
            f"{AWAY}the connection is refused",
            True,
        ),
        (OSError(LOST), f"{AWAY}the connection is refused", True),
        (
            OSError(113, "Connect call failed ('10.0.0.1', 6379)"),
            f"{AWAY}no network leads to it",
            True,
        ),
    ],
)
def test_each_has_its_sentence(error: Exception, told: str, outage: bool) -> None:
    failure = described(error)
    assert str(failure).startswith(told)
    assert "hunter" not in str(failure).lower()
    assert is_outage(error) is outage
    if isinstance(error, TierUnavailable):
        assert failure is error


def test_a_cause_is_what_an_error_was_raised_from() -> None:
    """Two may cause each other, as those of libraries, which raise a cause again."""
    one, other, gone = Lost("one"), Lost("other"), Lost("gone")
    one.__cause__, other.__cause__ = other, one
    gone.__context__ = WrongType("what a caller handled then")
    for each in (one, gone):
        assert str(described(each)) == "cannot reach Redis (ConnectionError)"


def options_of(server: RedisServer) -> dict[str, Any]:
    """Return what redis-py's connections to one server are made with."""
    assert isinstance(server, SingleServer)
    options: dict[str, Any] = server._pool.connection_kwargs
    return options


async def test_a_password_file_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    server = connect("redis://u@h", RedisAccess(password_file=str(file)))
    provider = options_of(server)["credential_provider"]
    assert await provider.get_credentials_async() == ("u", "one")
    file.write_text("two")
    assert await provider.get_credentials_async() == ("u", "two")
    file.unlink()  # As it is for a moment while another takes its place.
    assert await provider.get_credentials_async() == ("u", "two")


def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    for setting in ("redis_ca_file", "redis_password_file"):
        access = RedisAccess(**{setting.removeprefix("redis_"): str(tmp_path / "missing")})
        with pytest.raises(CannotUse, match=f"^{setting}: .*/missing: No such file"):
            connect("rediss://h", access)
    file = tmp_path / "ca.pem"
    file.write_text("not a certificate")
    with pytest.raises(CannotUse, match=r"redis_ca_file: .* is not a PEM certificate"):
        connect("rediss://h", RedisAccess(ca_file=str(file)))
    with pytest.raises(BadRedisUrl):
        connect("redis://:hunter/2@h")
