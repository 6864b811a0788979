"""The fingerprint changes with all that decides whether an artifact loads, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from wasmkiln.shared import fingerprint
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


@pytest.mark.parametrize(
    "unhashed", [{}, {"strategy": "cranelift", "compiler": "cranelift", "collector": "drc"}]
)
def test_artifacts_of_version_0_2_0_are_found(unhashed: dict[str, str]) -> None:
    """These are the fingerprints that version 0.2.0 computes."""
    wasmtime = EngineIdentity("wasmtime", "50.0.1", "50.0.1", "cranelift")
    settings = {"consume_fuel": "false", "gc_support": "true", **unhashed}
    assert fingerprint(wasmtime, "x86_64-unknown-linux-gnu", "x86-64-v3", (), settings) == (
        "4e4f9b1bacee4dd57aab49aaf88446cb680a15249acdd831a65699cd97103348"
    )
    wasmer = EngineIdentity("wasmer", "1.1.0", "2.1.1", "cranelift")
    features, settings = ("avx", "sse2"), {"engine": "universal", **unhashed}
    assert fingerprint(wasmer, "x86_64-unknown-linux-gnu", "native", features, settings) == (
        "4e943bc02c592d63be4e98c0a1c58e2fdcdd02260b0e5b727f1fb1c54276412a"
    )
