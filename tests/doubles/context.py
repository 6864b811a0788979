"""A call as a servicer sees it."""

from __future__ import annotations


class Context:
    """A call without metadata and deadline."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None
