"""Every number of a job's result is within what can be so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from wasmkilnd.engines import verdict
from wasmkilnd.engines.process import JobReport
from wasmkilnd.errors import Fault, Reason, WasmkilnError
from wasmkilnd.model import pack

from tests.unit.engines.limits import LIMITS

# As JSON says them: a job may write what it likes into its frame.
NO_NUMBERS = ["NaN", "-Infinity", "-1", "true", "null", '"1"', "[]", "1e400", "9" * 400]
NONSENSE = {
    "seconds": [*NO_NUMBERS, "1e300", "2.51", "-0.001"],
    "offset": [each for each in [*NO_NUMBERS, "1.0", "101", "1e300"] if each != "null"],
    "size_bytes": [*NO_NUMBERS, "1001.0", "1000", "1000001", str(2**64)],
}


def read(outcome: str, **numbers: Any) -> verdict.Verdict:
    said = json.loads(json.dumps({"outcome": outcome}))
    report = JobReport(
        set_up=True,
        configured=True,
        result={**said, **numbers},
        packed=pack(b"code") if outcome == "ok" else None,
        module_bytes=100,
        elapsed_s=2.5,
    )
    return verdict.read(report, "wasmtime-1", "compiling", LIMITS)


OUTCOMES = {"seconds": "ok", "offset": "invalid", "size_bytes": "too_large"}


@pytest.mark.parametrize(
    ("name", "number"), [(name, each) for name, all_ in NONSENSE.items() for each in all_]
)
def test_a_number_that_cannot_be_is_no_result(name: str, number: str) -> None:
    with pytest.raises(WasmkilnError) as failure:
        read(OUTCOMES[name], **{name: json.loads(number)})
    assert failure.value.reason is Reason.COMPILER_CRASHED
    assert failure.value.fault is Fault.MODULE
    assert name in failure.value.message or "not too large" in failure.value.message
    assert len(failure.value.message) < 300
