"""The fingerprint changes with all that decides whether an artifact loads, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from wasmkilnd import fingerprint as module
from wasmkilnd.fingerprint import fingerprint
from wasmkilnd.model import EngineIdentity

ENGINE = EngineIdentity("wasmtime", "50.0.1", "50", "cranelift")
ARGUMENTS = (ENGINE, "x86_64-unknown-linux-gnu", "native", ("avx", "bmi1"), {"a": "1", "b": "2"})


def test_order_does_not_matter() -> None:
    same = (*ARGUMENTS[:3], ("bmi1", "avx"), {"b": "2", "a": "1"})
    assert fingerprint(*same) == fingerprint(*ARGUMENTS)


@pytest.mark.parametrize(
    "changed",
    [
        (dataclasses.replace(ENGINE, version="50.0.2"), *ARGUMENTS[1:]),
        (dataclasses.replace(ENGINE, core_version="51"), *ARGUMENTS[1:]),
        (ENGINE, "aarch64-unknown-linux-gnu", *ARGUMENTS[2:]),
        (*ARGUMENTS[:2], "baseline", *ARGUMENTS[3:]),
        (*ARGUMENTS[:3], ("avx",), ARGUMENTS[4]),
        (*ARGUMENTS[:4], {"a": "1", "b": "3"}),
    ],
)
def test_everything_counts(changed: tuple[object, ...]) -> None:
    assert fingerprint(*changed) != fingerprint(*ARGUMENTS)  # type: ignore[arg-type]


def test_the_cache_format_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(*ARGUMENTS)
    monkeypatch.setattr(module, "CACHE_FORMAT", module.CACHE_FORMAT + 1)
    assert fingerprint(*ARGUMENTS) != before
