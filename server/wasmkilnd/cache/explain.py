"""Errors of the Redis client in words for operators: fixed sentences that hold no secret."""

from __future__ import annotations

from collections.abc import Iterator

from redis import exceptions

_QUOTED_CHARS = 120

_WRONG_CREDENTIALS = (
    exceptions.AuthenticationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
)


def explain(error: Exception) -> str:
    """Word ``error`` for logs and Stats."""
    # The client wraps what went wrong while connecting, once or twice.
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, _WRONG_CREDENTIALS):
            return "Redis refuses the user or password"
        if isinstance(link, exceptions.BusyLoadingError):
            return "Redis is loading its data"
    if is_timeout(error):
        return "Redis does not answer in time"
    if isinstance(error, exceptions.ResponseError):
        # The server's own word, which may quote arguments: only its beginning is told.
        return f"Redis says no: {str(error)[:_QUOTED_CHARS]}"
    for link in chain:
        if isinstance(link, OSError) and link.strerror:
            return f"Redis cannot be reached: {link.strerror}"
    if isinstance(error, exceptions.ConnectionError | OSError):
        return f"Redis cannot be reached ({type(chain[-1]).__name__})"
    return f"what answers does not speak the Redis protocol ({type(error).__name__})"


def is_timeout(error: Exception) -> bool:
    """Tell whether nobody answered in time, perhaps while connecting."""
    return any(isinstance(link, exceptions.TimeoutError | TimeoutError) for link in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_outage(error: Exception) -> bool:
    """Tell a server that nobody can use now from one that answers, even if it says no.

    One that answers garbage, which shows as any error at all, is as good as down.
    """
    if isinstance(error, exceptions.ResponseError):
        # Refusals that mean "nobody gets an answer here", however promptly they come.
        return isinstance(error, (*_WRONG_CREDENTIALS, exceptions.ClusterDownError))
    return True
