"""Describe the errors of Redis clients to operators, in fixed sentences without secrets."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError

from wasmkilnd.errors import PartUnavailable, TierUnavailable

# A server's own text is never repeated: it may quote what it was sent, even a password.
NO_ANSWER = "Redis does not answer in time"
"""For a server that accepts connections and does not answer."""

_REFUSALS: dict[type[exceptions.ResponseError], str] = {
    exceptions.NoPermissionError: "this user has no permission",
    exceptions.OutOfMemoryError: "it is full: it has reached its maxmemory",
    exceptions.ReadOnlyError: "it is read-only",
    exceptions.ClusterDownError: "the cluster is down",
    exceptions.MasterDownError: "it is a replica that has lost its primary",
}
# https://upstash.com/docs/redis/troubleshooting: for the rest of the day or month.
_USED_UP = re.compile(r"max (daily )?requests? limit exceeded")
_REFUSALS_BY_TEXT = {
    "the requests of the plan are used up": _USED_UP,
    "the request is too large": re.compile(r"max request size exceeded"),
    "it does not know this command": re.compile(r"unknown command"),
    "it cannot save what it holds": re.compile(r"MISCONF"),
    "too few of its replicas follow": re.compile(r"NOREPLICAS"),
}
# Except the name of a command, if it is one that this daemon sends.
_COMMAND = re.compile(
    r"(?:unknown command|to run the) ['`]"
    r"(asking|cluster|dbsize|del|eval|exists|expire|get|getrange|hello|info|ping|scan|select"
    r"|set|strlen|ttl|unlink)\b",
    re.IGNORECASE,
)

_WRONG_CREDENTIALS = (
    exceptions.AuthenticationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
)


def explain(error: Exception) -> str:
    """Describe ``error`` for logs and Stats."""
    if isinstance(error, TierUnavailable):
        return str(error)  # Described already.
    # redis-py wraps errors of connecting, once or twice.
    chain = list(_chain(error))
    if any(isinstance(link, MasterNotFoundError) for link in chain):
        return _explain_no_primary(chain)
    for link in chain:
        if isinstance(link, _WRONG_CREDENTIALS):
            return "Redis refuses the user or password"
        if isinstance(link, exceptions.BusyLoadingError):
            return "Redis is loading its data"
        if isinstance(link, ssl.SSLError):
            return _explain_tls(link)
    if is_timeout(error):
        return NO_ANSWER
    if isinstance(error, exceptions.ResponseError):
        return f"Redis refuses: {_explain_refusal(error)}"
    for link in chain:
        if isinstance(link, OSError) and link.strerror:
            return f"cannot reach Redis: {link.strerror}"
    if isinstance(error, exceptions.ConnectionError | OSError):
        return f"cannot reach Redis ({type(chain[-1]).__name__})"
    return f"the server does not speak the Redis protocol ({type(error).__name__})"


def _explain_refusal(error: exceptions.ResponseError) -> str:
    text = str(error)
    command = _COMMAND.search(text)
    about = f" ({command[1].upper()})" if command else ""
    for kind, why in _REFUSALS.items():
        if isinstance(error, kind):
            return why + about
    for why, pattern in _REFUSALS_BY_TEXT.items():
        if pattern.search(text):
            return why + about
    return f"it gives no reason that wasmkilnd knows ({type(error).__name__})"


def _explain_no_primary(chain: list[BaseException]) -> str:
    if any(isinstance(link, _WRONG_CREDENTIALS) for link in chain):
        return "the Sentinels refuse the user or password"
    if any(isinstance(link, exceptions.NoPermissionError) for link in chain):
        return "the Sentinels do not allow this user to run SENTINEL MASTER"
    if any(isinstance(link, exceptions.ResponseError) for link in chain):
        return "the Sentinels know no primary of that name"
    return "no reachable Sentinel names a primary that is up"


def _explain_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", "") or "it cannot be checked"
        return f"the certificate of Redis is not trusted: {why}"
    return f"cannot reach Redis: TLS fails ({getattr(error, 'reason', None) or 'no reason'})"


def is_timeout(error: Exception) -> bool:
    """Return whether the server did not answer in time, perhaps while connecting."""
    return any(isinstance(link, exceptions.TimeoutError | TimeoutError) for link in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_outage(error: Exception) -> bool:
    """Return whether no client can use the server now, rather than it refusing one command.

    A server that returns garbage, which shows as any error at all, is as good as down.
    """
    if isinstance(error, exceptions.ResponseError):
        # Refusals that every command would meet.
        everybody = (*_WRONG_CREDENTIALS, exceptions.ClusterDownError)
        return isinstance(error, everybody) or _USED_UP.search(str(error)) is not None
    return not isinstance(error, PartUnavailable)
