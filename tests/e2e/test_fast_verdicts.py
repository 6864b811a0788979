"""A fast compiler says nothing about whether a module is valid: the default compiler decides."""

from __future__ import annotations

import pytest
from wasmkiln import Client, WasmkilnError

from tests.e2e.test_fast_first import fast_of
from tests.e2e.wasm import COMPONENT_PREAMBLE
from tests.verdicts.cases import CASES, Case

INVALID, LACKS, OK = "MODULE_INVALID", "ENGINE_LACKS_FEATURE", ""


def reason_of(client: Client, module: bytes, engine: str, **asked: object) -> str:
    """Return why a compile fails; "" if it does not."""
    try:
        client.compile(module, engine=engine, omit_artifact=True, **asked)  # type: ignore[arg-type]
    except WasmkilnError as refusal:
        return refusal.reason or refusal.code.name
    return OK


# One version of each: test_fast_first has both versions of wasmtime, test_verdicts all verdicts.
@pytest.mark.parametrize("engine", ["wasmtime-50.0.1", "wasmer-1.1.0"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_verdict_is_the_engines(client: Client, case: Case, engine: str) -> None:
    module = case.wasm()
    # First, so that no verdict of the default compiler is known yet.
    accepting = reason_of(client, module, engine, accept_fast=True)
    named = reason_of(client, module, engine, settings=fast_of(engine))
    default = reason_of(client, module, engine)
    # A fast compiler may take what the default one does not: a wide signature, for example.
    assert accepting == default or (accepting, default) == (OK, LACKS)
    if module.startswith(COMPONENT_PREAMBLE) and engine.startswith("wasmtime"):
        # Winch's word about a component is not taken, and the default compiler is not asked.
        assert named in (default, LACKS)
    else:
        assert named == default or {named, default} == {LACKS, OK}
        assert (named == INVALID) is (default == INVALID)
