"""The base of the client's exceptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import grpc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request that the daemon refused, and why."""

    field: str
    description: str


class WasmkilnError(Exception):
    """The base of every failure of a call, or of loading an artifact.

    `message` is a text for people, `code` the gRPC status code, and `reason` the contract's
    word for the condition ("" when there is none); decide by that. `metadata` holds what the
    contract lists for the reason. `retry_after_s` is how many seconds to wait before another
    try (None when the daemon did not say), and `field_violations` are the refused fields.
    """

    CODE: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    REASON: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        field_violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code: grpc.StatusCode = self.CODE if code is None else code
        self.reason = self.REASON if reason is None else reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.field_violations = tuple(field_violations)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.message!r}, code={self.code.name}, "
            f"reason={self.reason!r}, metadata={self.metadata!r})"
        )
