"""The orders of jobs: which priority each has."""

from __future__ import annotations

import dataclasses

import pytest
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.model import Kind, Limits, Module, Priority

MODULE = Module("0" * 64, Kind.CORE_MODULE, b"")
LIMITS = Limits(1, 1, 1.0, 1.0, 1, 1, 1)


@pytest.mark.parametrize(
    ("wanted", "of_fast"),
    [
        (Priority.IDLE, Priority.LOW),
        (Priority.LOW, Priority.LOW),
        (Priority.NORMAL, Priority.NORMAL),
    ],
)
def test_fast_code_does_not_wait_for_optimised_code(wanted: Priority, of_fast: Priority) -> None:
    limits = dataclasses.replace(LIMITS, priority=wanted)

    def priority(settings: dict[str, str]) -> Priority:
        order = job_orders.on_module("compile", MODULE, "target", "cpu", settings, limits)
        return order.priority

    assert priority({}) is wanted
    assert priority({"strategy": "cranelift", "consume_fuel": "true"}) is wanted
    assert priority({"strategy": "winch"}) is of_fast
    assert priority({"compiler": "singlepass"}) is of_fast
