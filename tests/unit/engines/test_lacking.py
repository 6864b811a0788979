"""A module that needs what no engine here has lacks an engine, and is not called invalid."""

from __future__ import annotations

import pytest
from wasmkilnd.errors import Reason

from tests.unit.engines.test_compilation import (
    INVALID,
    UNSUPPORTED,
    VALID,
    Rig,
    Said,
)
from tests.unit.engines.test_compilation import refused as refusal_of

LEGACY: Said = {
    "outcome": "invalid",
    "message": "legacy_exceptions feature required for try instruction (at offset 0x17)",
    "offset": 23,
}
EXCEPTIONS: Said = {
    "outcome": "invalid",
    "message": "Exceptions support is not enabled (at offset 23)",
    "offset": 23,
}
NO_SIMD: Said = {
    "outcome": "invalid",
    "message": "SIMD support is not enabled (at offset 11)",
    "offset": 11,
}


@pytest.mark.parametrize("engine", ["old-1", "new-1"])
@pytest.mark.parametrize("old", [INVALID, EXCEPTIONS])
async def test_what_no_engine_has_is_lacking_whichever_is_asked(engine: str, old: Said) -> None:
    rig = Rig({"old-1": (old, old), "new-1": (LEGACY, LEGACY)})
    for call in (rig.load(engine), rig.compile(engine)):
        failure = await refusal_of(call)
        assert failure.reason is Reason.ENGINE_LACKS_FEATURE
        assert failure.metadata["accepted_by"] == ""
        assert failure.metadata["feature"] == "legacy-exceptions"
        assert "it needs legacy-exceptions; no engine of this daemon accepts it" in failure.message


async def test_one_that_has_the_feature_and_finds_a_mistake_has_read_further() -> None:
    rig = Rig({"old-1": (NO_SIMD, NO_SIMD), "new-1": (INVALID, INVALID)})
    for engine in ("old-1", "new-1"):
        failure = await refusal_of(rig.load(engine))
        assert failure.reason is Reason.MODULE_INVALID
        assert "feature" not in failure.metadata


async def test_one_without_the_feature_that_finds_something_else_wrong_overrules_nobody() -> None:
    rig = Rig({"old-1": (NO_SIMD, NO_SIMD), "old-2": (INVALID, INVALID)})
    for engine in ("old-1", "old-2"):
        failure = await refusal_of(rig.load(engine))
        assert failure.reason is Reason.ENGINE_LACKS_FEATURE
        assert failure.metadata["feature"] == "simd"


async def test_settings_that_switch_the_feature_off_hide_no_mistake() -> None:
    rig = Rig({"new-1": (INVALID, NO_SIMD)})
    failure = await refusal_of(rig.compile("new-1", settings={"wasm_simd": "false"}))
    assert failure.reason is Reason.MODULE_INVALID


async def test_what_another_finds_valid_and_does_not_compile_is_not_invalid() -> None:
    """Whichever engine is asked first."""
    rig = Rig({"old-1": (INVALID, INVALID), "new-1": (VALID, UNSUPPORTED)})
    await refusal_of(rig.compile("new-1"))
    assert (await refusal_of(rig.load("old-1"))).reason is Reason.ENGINE_LACKS_FEATURE


async def test_names_of_the_module_name_no_feature() -> None:
    message = "duplicate export name `SIMD support is not enabled` already defined (at offset 0x9)"
    hostile: Said = {"outcome": "invalid", "message": message, "offset": 9}
    rig = Rig({"old-1": (hostile, hostile), "new-1": (hostile, hostile)})
    assert (await refusal_of(rig.load("old-1"))).reason is Reason.MODULE_INVALID
