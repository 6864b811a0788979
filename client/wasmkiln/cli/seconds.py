"""A number of seconds as the value of an option."""

from __future__ import annotations

import math
from typing import Any

import click

from wasmkiln._settings import MAX_TIMEOUT_S


class Seconds(click.FloatRange):
    """A number of seconds up to a year. Refuses NaN, which click finds in every range."""

    def __init__(self, min_s: float = 0, *, min_open: bool = False) -> None:
        super().__init__(min=min_s, min_open=min_open, max=MAX_TIMEOUT_S)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail with a usage error."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds
