"""wasmtime with cranelift: core modules and components.

Settings carry the names of ``wasmtime.Config``'s own attributes, so that a host
can apply ``changed_settings`` one by one to load the artifact.
"""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

import wasmtime
from wasmtime import component

from .cpu import NATIVE, X86_64_LEVELS
from .engine import (
    Description,
    Extern,
    FeatureLacking,
    ModuleRefused,
    SettingsRefused,
    offset_in,
)
from .features import CORE_PREAMBLE

_BOOL = ["false", "true"]

# The attributes of wasmtime.Config that change an artifact or decide which hosts can load it.
# Those that only change how this process works (cache, profiler, parallel_compilation,
# strategy, max_wasm_stack, memory_init_cow, mach ports) are left out on purpose, and so is
# debug_info, which puts paths and sources into artifacts.
_SETTINGS = {
    "cranelift_opt_level": (
        ["none", "speed", "speed_and_size"],
        "How hard the compiler tries.",
    ),
    "cranelift_nan_canonicalization": (_BOOL, "One NaN for all, for deterministic floats."),
    "consume_fuel": (_BOOL, "Code counts fuel, and stops when it is used up."),
    "epoch_interruption": (_BOOL, "Code can be interrupted by raising the engine's epoch."),
    "gc_support": (_BOOL, "Whether the garbage collector is there at all."),
    "signals_based_traps": (_BOOL, "Traps by signal handlers rather than by explicit checks."),
    "native_unwind_info": (_BOOL, "Whether unwind tables are part of the artifact."),
    "memory_may_move": (_BOOL, "Whether linear memories may move when they grow."),
    "memory_reservation": (
        ["0", "4294967296"],
        "Virtual memory reserved for each linear memory, bytes.",
    ),
    "memory_guard_size": (
        ["0", "65536", "33554432"],
        "Guard region behind each linear memory, bytes.",
    ),
    "shared_memory": (_BOOL, "Whether shared memories can be created."),
}
_PROPOSAL_DESCRIPTION = "Whether modules may use this proposal."

# In an artifact the engine lists the CPU features it compiled for, each a name and a true byte.
_CPU_FLAG = re.compile(rb"has_([a-z0-9_]+)\x02\x01")
_TRIPLE = re.compile(rb"(?:x86_64|aarch64|riscv64gc|s390x)(?:-[a-z0-9_]+){2,3}")

# Cranelift's names for the features of /proc/cpuinfo, where they differ.
_FLAG_NAMES = {"sse4_1": "sse41", "sse4_2": "sse42", "cx16": "cmpxchg16b"}

_CAUSES = re.compile(r"\n+Caused by:\n")
_LACKING = re.compile(
    r"\b(?:not (?:yet )?(?:supported|implemented)|unsupported|unimplemented)\b", re.I
)
_CAUSE_NUMBER = re.compile(r"^ +\d+: ", re.MULTILINE)


class WasmtimeEngine:
    """PyPI's wasmtime, of whatever version is imported."""

    name = "wasmtime"

    def __init__(self) -> None:
        # Read it now: a job cannot open files.
        self._version = importlib.metadata.version("wasmtime")

    def describe(self) -> Description:
        """Return a description; read the triple and the CPU features from a compiled module."""
        probe = bytes(wasmtime.Module(wasmtime.Engine(), CORE_PREAMBLE).serialize())
        triple = _TRIPLE.search(probe)
        host = triple.group().decode() if triple else ""
        settings = {name: allowed for name, (allowed, _) in _SETTINGS.items() if _has_setting(name)}
        proposals = {name: _BOOL for name in dir(wasmtime.Config) if name.startswith("wasm_")}
        return Description(
            name=self.name,
            version=self._version,
            core_version=_core_version(probe, host) or self._version,
            compiler="cranelift",
            host_triple=host,
            host_cpu_features=sorted({flag.decode() for flag in _CPU_FLAG.findall(probe)}),
            candidate_targets=[
                host,
                *(
                    t
                    for t in ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")
                    if t != host
                ),
            ],
            setting_values={**settings, **proposals},
            setting_descriptions={
                **{name: text for name, (_, text) in _SETTINGS.items()},
                **dict.fromkeys(proposals, _PROPOSAL_DESCRIPTION),
            },
            kinds=["core", "component"],
        )

    def configure(self, target: str, cpu: str, settings: dict[str, str]) -> wasmtime.Engine:
        """Return an engine. Raises SettingsRefused; wasmtime aborts if it refuses them later."""
        config = wasmtime.Config()
        try:
            if cpu != NATIVE:
                # Naming even the host's own triple turns the detection of CPU features off.
                config.target = target
                for feature in X86_64_LEVELS[cpu] if target.startswith("x86_64") else ():
                    config.cranelift_flag_enable(f"has_{_FLAG_NAMES.get(feature, feature)}")
            for name, value in settings.items():
                setattr(config, name, _as_config_value(value))
            return wasmtime.Engine(config)
        except (wasmtime.WasmtimeError, TypeError) as refusal:
            raise SettingsRefused(str(refusal)) from None

    def validate(self, configured: wasmtime.Engine, wasm: bytearray, kind: str) -> None:
        """Raise ModuleRefused unless ``wasm`` is valid; FeatureLacking too, for a component.

        The package validates core modules only; to validate a component, compile it.
        """
        try:
            if kind == "core":
                wasmtime.Module.validate(configured, wasm)
            else:
                component.Component(configured, wasm)
        except wasmtime.WasmtimeError as refusal:
            raise _refusal(_plain(str(refusal)), kind) from None

    def compile(self, configured: wasmtime.Engine, wasm: bytearray, kind: str) -> Any:
        """Compile. Raises ModuleRefused, or FeatureLacking for a module that is valid.

        wasmtime validates each function just before it compiles it, so a module with an error at
        its end would cost a whole compile. Validating a core module first costs 1 to 2 % of that.
        The package cannot validate a component without compiling it.
        """
        if kind == "core":
            self.validate(configured, wasm, kind)
        try:
            if kind == "core":
                return wasmtime.Module(configured, wasm)
            return component.Component(configured, wasm)
        except wasmtime.WasmtimeError as failure:
            message = _plain(str(failure))
        raise FeatureLacking(message) if kind == "core" else _refusal(message, kind)

    def serialize(self, module: Any) -> bytearray:
        """Return the artifact."""
        artifact: bytearray = module.serialize()
        return artifact

    def externs(
        self, configured: wasmtime.Engine, module: Any
    ) -> tuple[list[Extern], list[Extern]]:
        """List imports and exports in the module's order."""
        if isinstance(module, component.Component):
            kind = module.type
            return (
                [Extern("", name, *_item(item)) for name, item in kind.imports(configured).items()],
                [Extern("", name, *_item(item)) for name, item in kind.exports(configured).items()],
            )
        return (
            [Extern(i.module, i.name or "", *_kind_and_type(i.type)) for i in module.imports],
            [Extern("", e.name, *_kind_and_type(e.type)) for e in module.exports],
        )

    def call(
        self,
        configured: wasmtime.Engine,
        artifact: bytearray,
        kind: str,
        export: str,
        arguments: list[int],
    ) -> Any:
        """Load an artifact; return what its function returns."""
        store = wasmtime.Store(configured)
        function: Any
        if kind == "core":
            module = wasmtime.Module.deserialize(configured, artifact)
            function = wasmtime.Instance(store, module, []).exports(store)[export]
        else:
            loaded = component.Component.deserialize(configured, artifact)
            instance = component.Linker(configured).instantiate(store, loaded)
            function = instance.get_func(store, export)
        return function(store, *arguments)


def _refusal(message: str, kind: str) -> Exception:
    # A component that needs a feature which the engine lacks gets a message without an offset.
    if kind == "component" and offset_in(message) is None and _LACKING.search(message):
        return FeatureLacking(message)
    return ModuleRefused(message)


def _plain(message: str) -> str:
    """Return the first cause of a chain of causes: that is the engine's own sentence."""
    causes = _CAUSES.split(message.strip(), maxsplit=1)[-1]
    return _CAUSE_NUMBER.split(causes)[-1].strip()


def _has_setting(name: str) -> bool:
    return hasattr(wasmtime.Config, name)


def _as_config_value(value: str) -> bool | int | str:
    if value in _BOOL:
        return value == "true"
    return int(value) if value.isdigit() else value


def _core_version(probe: bytes, host: str) -> str:
    """Return the version that the engine writes before its triple, which a loader compares."""
    found = re.search(rb"\x02?([0-9]+(?:\.[0-9]+)*)[\x00-\x7f]" + re.escape(host.encode()), probe)
    return found.group(1).decode() if host and found else ""


def _kind_and_type(item: Any) -> tuple[str, str]:
    if isinstance(item, wasmtime.FuncType):
        return "function", f"({_types(item.params)}) -> ({_types(item.results)})"
    if isinstance(item, wasmtime.GlobalType):
        return "global", f"{'mut ' if item.mutable else ''}{item.content}"
    if isinstance(item, wasmtime.TableType):
        return "table", f"{item.element} {_range(item.limits)}"
    if isinstance(item, wasmtime.MemoryType):
        shared = " shared" if getattr(item, "is_shared", False) else ""
        return "memory", f"pages {_range(item.limits)}{shared}"
    return ("tag" if type(item).__name__ == "TagType" else "other"), type(item).__name__


def _types(types: list[Any]) -> str:
    return ", ".join(map(str, types))


def _range(limits: wasmtime.Limits) -> str:
    return f"{limits.min}..{'' if limits.max is None else limits.max}"


def _item(item: Any) -> tuple[str, str]:
    # Newer packages wrap the type in an extern.
    item = getattr(item, "ty", item)
    name = type(item).__name__.removesuffix("Type").removeprefix("Component").lower()
    return ("function", "func") if name == "func" else ("other", name)
