"""How much the long tests do: their full size in `make test FULL=1`, else less of the same."""

from __future__ import annotations

import os
from typing import TypeVar

Number = TypeVar("Number", int, float)

FULL = bool(os.environ.get("FULL"))


def size(full: Number, quick: Number) -> Number:
    """Return ``full`` in a full run, else ``quick``, with which the test still shows the same."""
    return full if FULL else quick
