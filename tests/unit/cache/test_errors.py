"""What went wrong, in words for operators, and whether it concerns everybody."""

from __future__ import annotations

import ssl

import pytest
from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError
from wasmkilnd.cache.redis.errors import explain, is_outage
from wasmkilnd.errors import PartUnavailable, TierUnavailable

NO = "Redis refuses: "


def caused(error: Exception, cause: Exception) -> Exception:
    """Return ``error``, raised from ``cause``."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "told", "outage"),
    [
        (PartUnavailable("a node is down"), "a node is down", False),
        (TierUnavailable("nobody answers"), "nobody answers", True),
        (exceptions.ReadOnlyError("hunter2"), "Redis refuses: it is read-only", False),
        (exceptions.ClusterDownError("hunter2"), "Redis refuses: the cluster is down", True),
        (exceptions.ResponseError("ERR max requests limit exceeded."), f"{NO}the requests", True),
        (exceptions.ResponseError("ERR max daily request limit exceeded"), f"{NO}the req", True),
        (
            exceptions.ResponseError("ERR max request size exceeded"),
            f"{NO}the request is too",
            False,
        ),
        (
            exceptions.ResponseError(
                "unknown command 'AUTH', with args beginning with: 'app' 'hunter2' "
            ),
            "Redis refuses: it does not know this command",
            False,
        ),
        (
            exceptions.ResponseError("unknown command 'EVAL', with args beginning with: 'hunter2'"),
            "Redis refuses: it does not know this command (EVAL)",
            False,
        ),
        (
            exceptions.NoPermissionError("User hunter has no permissions to run the 'get' command"),
            "Redis refuses: this user has no permission (GET)",
            False,
        ),
        (
            exceptions.ResponseError("HUNTER2 hunter2"),
            "Redis refuses: it gives no reason that wasmkilnd knows",
            False,
        ),
        (
            caused(MasterNotFoundError("x"), exceptions.AuthenticationError("hunter2")),
            "the Sentinels refuse the user or password",
            True,
        ),
        (
            caused(MasterNotFoundError("x"), exceptions.NoPermissionError("hunter2")),
            "the Sentinels do not allow this user to run SENTINEL MASTER",
            True,
        ),
        (
            caused(MasterNotFoundError("x"), exceptions.ResponseError("No such master")),
            "the Sentinels know no primary of that name",
            True,
        ),
        (
            caused(MasterNotFoundError("x"), exceptions.ConnectionError("hunter2")),
            "no reachable Sentinel names a primary that is up",
            True,
        ),
        (
            caused(exceptions.ConnectionError("hunter2"), ssl.SSLError(1, "hunter2")),
            "cannot reach Redis: TLS fails",
            True,
        ),
    ],
)
def test_each_has_its_sentence(error: Exception, told: str, outage: bool) -> None:
    assert explain(error).startswith(told)
    assert "hunter" not in explain(error).lower()
    assert is_outage(error) is outage
