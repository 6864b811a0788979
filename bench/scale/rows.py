"""All that is measured about scale."""

from __future__ import annotations

from collections.abc import Iterator

from bench.results import Row
from bench.scale.callers import callers
from bench.scale.operations import operations
from bench.scale.start import starts
from bench.scale.whole import whole_daemons
from bench.setting import Setting


def scale(given: Setting) -> Iterator[Row]:
    """What grows with entries, and what a hit costs with many callers."""
    yield from whole_daemons(given)
    yield from operations(given)
    yield from starts(given)
    yield from callers(given)
