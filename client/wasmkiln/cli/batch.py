"""Several inputs in one run: one that fails does not stop the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from wasmkiln.cli.exits import Exit, exit_for
from wasmkiln.cli.json_output import error_document
from wasmkiln.errors import ConnectionFailed, WasmkilnError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from wasmkiln.cli.session import Session

R = TypeVar("R")


@dataclass(frozen=True)
class Done(Generic[R]):
    """The outcome of one input: a result or an error."""

    source: str
    result: R | None = None
    error: Exception | None = None


def attempt(source: str, work: Callable[[str], R]) -> Done[R]:
    """Do the work for one input. Keep a WasmkilnError or OSError instead of raising it."""
    try:
        return Done(source, result=work(source))
    except (WasmkilnError, OSError) as error:
        return Done(source, error=error)


def attempt_each(sources: Iterable[str], work: Callable[[str], R]) -> list[Done[R]]:
    """Do the work for each input in turn. Stop early only when no daemon listens."""
    done = []
    for source in sources:
        done.append(attempt(source, work))
        if isinstance(done[-1].error, ConnectionFailed):
            break
    return done


def report_failures(session: Session, done: Iterable[Done[Any]]) -> Exit:
    """Write every failure to stderr. Return the exit code of the first, or OK."""
    code = Exit.OK
    for item in done:
        if item.error is not None:
            session.report(item.error, item.source)
            code = code or exit_for(item.error)
    return code


def errors_in(done: Iterable[Done[Any]]) -> list[dict[str, Any]]:
    """Return the failures as JSON objects."""
    return [
        error_document(item.error, item.source)["error"] for item in done if item.error is not None
    ]
