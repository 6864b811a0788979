"""A call as a servicer sees it."""

from __future__ import annotations


class Context:
    """A call without a deadline."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> None:
        return None
