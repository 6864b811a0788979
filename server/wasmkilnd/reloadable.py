"""A holder for a value that a configuration reload replaces while calls run."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Reloadable(Generic[T]):
    """Holds the current value; a reload replaces it as a whole.

    A piece of work that needs the value more than once reads ``current`` once, at its
    start: so a compilation ends under the limits under which it began.
    """

    def __init__(self, value: T) -> None:
        self.current = value
