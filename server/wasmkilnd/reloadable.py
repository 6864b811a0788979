"""What a reload replaces while everything runs: a holder that is asked at every use."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Reloadable(Generic[T]):
    """Holds the value that counts ``now``; a reload puts another in its place, as a whole.

    Whoever needs it more than once for one piece of work takes it once: so a
    compilation ends under the limits under which it began.
    """

    def __init__(self, value: T) -> None:
        self.now = value
