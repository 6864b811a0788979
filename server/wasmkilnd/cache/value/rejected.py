"""A stored value that is not used."""

from __future__ import annotations

from wasmkilnd.model import RejectionCause as Cause

__all__ = ["Cause", "ValueRejected"]


class ValueRejected(Exception):  # noqa: N818 - says what happened to the value
    """A stored value does not verify: delete it, and never use it."""

    def __init__(self, cause: Cause, why: str) -> None:
        super().__init__(f"{cause.value}: {why}")
        self.cause = cause
        self.why = why
