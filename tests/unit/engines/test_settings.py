"""Each function that configures wasmtime is a setting, or there is a reason why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import wasmtime
from wasmkilnd.engines.child import wasmtime_engine
from wasmkilnd.model import SettingInfo

PROCESS = "it changes only how the process works that has the engine, and no artifact"
NO_SETTINGS = {
    "async_stack_size_set": PROCESS,
    "cache_config_load": PROCESS,
    "host_memory_creator_set": PROCESS,
    "host_stack_creator_set": PROCESS,
    "macos_use_mach_ports_set": PROCESS,
    "max_wasm_stack_set": PROCESS,
    "parallel_compilation_set": PROCESS,
    "profiler_set": PROCESS,
    "target_set": "a request has a field for it",
    "cranelift_debug_verifier_set": "the compiler checks itself, and its code is the same",
    "cranelift_flag_enable": "those of the CPU follow from a request's cpu; a loader compares no"
    " other that a host may change, and among them are protections",
    "cranelift_flag_set": "as cranelift_flag_enable",
    "cranelift_regalloc_algorithm_set": "a loader does not compare it, and strategy=winch is there"
    " for who wants to compile fast",
}


def test_each_function_is_a_setting_or_has_a_reason() -> None:
    [library] = Path(wasmtime.__file__).parent.glob("*/_libwasmtime.*")
    functions = set(re.findall(rb"\0wasmtime_config_(\w+)(?=\0)", library.read_bytes()))
    offered = wasmtime_engine.describe()["candidate_settings"].keys() - {"collector"}
    of_settings = {f"{name}_set" for name in offered}
    assert not of_settings & NO_SETTINGS.keys()
    assert {each.decode() for each in functions} == of_settings | NO_SETTINGS.keys()


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        *[(value, True) for value in ("0", "64", "65", "100")],
        *[(value, False) for value in ("101", "-1", "0..100", "00", "+1", "1.", "²", "٣", "", "x")],
    ],
)
def test_a_number_has_bounds_and_one_way_to_be_written(value: str, fits: bool) -> None:
    number = SettingInfo("size", "0", ["0", "64", "0..100"], "")
    assert number.takes(value) is fits
    assert not SettingInfo("word", "a", ["a", "b"], "").takes(value)
