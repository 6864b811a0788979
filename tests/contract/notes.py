"""A recorder for tests."""

from __future__ import annotations

from typing import Any


class Notes:
    """Remembers why values were rejected, and takes note of nothing else."""

    def __init__(self) -> None:
        self.rejected: list[str] = []

    def value_rejected(self, tier: str, cause: str) -> None:
        self.rejected.append(cause)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None
