"""PyPI's wasmtime with cranelift, or with Winch, its fast compiler: core modules and components.

A setting NAME is set by the function ``wasmtime_config_NAME_set`` of the C API, so that a host can
apply ``changed_settings`` one by one to load the artifact. ``wasmtime.Config`` has an attribute of
the same name for most of them. No function chooses the setting ``collector``: it is read from an
artifact, or left out.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from typing import Any, NamedTuple

import wasmtime
from wasmtime import _bindings, component

from . import section
from .cpu import NATIVE, PORTABLE, X86_64_LEVELS
from .describe import CORE_PREAMBLE
from .engine import Extern, FeatureLacking, ModuleRefused, SettingsRefused, bounds, offset_in

# Read it now: a job cannot open files.
_VERSION = importlib.metadata.version("wasmtime")
_STRATEGY = "strategy"
_COLLECTOR = "collector"
# The collectors, by the numbers that artifacts have for them, and as the command's -C collector
# calls them.
_COLLECTORS = ("drc", "null", "copying")
_NO_COLLECTOR = "none"

# What changes an artifact or decides which hosts can load it. A test says of each other function of
# the C API why it is no setting.
_SETTINGS = {
    _STRATEGY: "The compiler. Winch takes a fifth of cranelift's time, and its code runs slower;"
    " it lacks some proposals. A host needs an engine with the same strategy.",
    "cranelift_opt_level": "How hard the compiler tries.",
    "cranelift_nan_canonicalization": "One NaN for all, for deterministic floats.",
    "consume_fuel": "Code counts fuel, and stops when it is used up.",
    "epoch_interruption": "Code can be interrupted by raising the engine's epoch.",
    _COLLECTOR: "The garbage collector that the code is for: a host with another one refuses it."
    " Code for none loads with any, and cannot use collected types; gc_support=false means the"
    " same.",
    "gc_support": "Whether the garbage collector is there at all.",
    "signals_based_traps": "Traps by signal handlers rather than by explicit checks. Without, code"
    " lacks wasmtime's mitigations of Spectre.",
    "native_unwind_info": "Whether unwind tables are part of the artifact.",
    "memory_may_move": "Whether linear memories may move when they grow.",
    "memory_reservation": "Virtual memory reserved for each linear memory, bytes.",
    "memory_reservation_for_growth": "Virtual memory reserved behind one that moved, bytes.",
    "memory_guard_size": "Guard region behind each linear memory, bytes.",
    "memory_init_cow": "Whether memories start as copy-on-write images of their data.",
    "shared_memory": "Whether shared memories can be created.",
    "debug_info": "Whether the artifact has native debug information, with what the module's own"
    " says of names, paths and sources.",
    "concurrency_support": "Whether components can run tasks at once. Without,"
    " wasm_component_model_async is off, too.",
}
# Besides those that are attributes of wasmtime.Config.
_MORE_PROPOSALS = (
    "wasm_branch_hinting",
    "wasm_compact_imports",
    "wasm_component_model_accessors",
    "wasm_component_model_async",
    "wasm_component_model_async_stackful",
    "wasm_component_model_canonical_names",
    "wasm_component_model_more_async_builtins",
)
_PROPOSAL = "Whether modules may use this proposal."
# What the C API calls the values of settings.
_BOOL = {"false": 0, "true": 1}
_CHOICES = {
    _STRATEGY: {"cranelift": 1, "winch": 2},
    "cranelift_opt_level": {"none": 0, "speed": 1, "speed_and_size": 2},
}
# Numbers: the ends of their range, between them the defaults and what hosts choose. A job reserves
# nothing; in a host the largest, 1 TiB, still fits into the address space.
_MOST = str(2**40)
_SIZES = {
    "memory_reservation": ["0", "4294967296", _MOST],
    "memory_reservation_for_growth": ["0", "2147483648", _MOST],
    "memory_guard_size": ["0", "65536", "33554432", _MOST],
}
# Values that an engine takes only together with another setting.
_TOGETHER = {("wasm_simd", "false"): {"wasm_relaxed_simd": "false"}}
_TARGETS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", PORTABLE)

# Cranelift's names for the features of /proc/cpuinfo, where they differ.
_FLAG_NAMES = {"sse4_1": "sse41", "sse4_2": "sse42", "cx16": "cmpxchg16b"}

_CAUSES = re.compile(r"\n+Caused by:\n")
_CAUSE_NUMBER = re.compile(r"^ +\d+: ", re.MULTILINE)
_LACKING = re.compile(
    r"\b(?:not (?:yet )?(?:supported|implemented)|unsupported|unimplemented)\b", re.I
)


class Configured(NamedTuple):
    """An engine that compiles, and one that decides whether a module is valid.

    They differ for Winch and for Pulley, the interpreter: their engines call modules invalid that
    need a proposal which they lack.
    """

    engine: wasmtime.Engine
    validator: wasmtime.Engine
    is_portable: bool = False


def describe() -> dict[str, Any]:
    """Return a description; read the triple and the CPU features from a compiled module."""
    probe = bytes(wasmtime.Module(wasmtime.Engine(), CORE_PREAMBLE).serialize())
    try:
        shown = section.parse(section.in_artifact(probe))
    except section.Unreadable:  # A version that writes it otherwise.
        shown = section.Section(_VERSION, f"{platform.machine()}-unknown-linux-gnu", {}, {})
    host, number = shown.triple, int(shown.rest.get("collector", len(_COLLECTORS)))
    collector = "".join(_COLLECTORS[number : number + 1])
    proposals = [name for name in dir(wasmtime.Config) if name.startswith("wasm_")]
    names = dict.fromkeys([*_SETTINGS, *proposals, *_MORE_PROPOSALS])
    has = [name for name in names if hasattr(_bindings, _setter(name))]
    values = {**_CHOICES, **_SIZES, _COLLECTOR: [collector, _NO_COLLECTOR]}
    return {
        "name": "wasmtime",
        "version": _VERSION,
        "core_version": shown.version,
        "compiler": "cranelift",
        "host_triple": host,
        "host_cpu_features": sorted(
            name.removeprefix("has_") for name, has in shown.cpu.items() if has
        ),
        "candidate_targets": [host, *(target for target in _TARGETS if target != host)],
        "candidate_settings": {
            name: (
                _SETTINGS.get(name, _PROPOSAL),
                {
                    value: {name: value, **_TOGETHER.get((name, value), {})}
                    for value in values.get(name, _BOOL)
                },
            )
            for name in [*has, *([_COLLECTOR] if collector else [])]
        },
        "kinds": ["core", "component"],
        "compiler_setting": _STRATEGY,
    }


def configure(target: str, cpu: str, settings: dict[str, str]) -> Configured:
    """Return an engine. Raises SettingsRefused; wasmtime aborts if it refuses them later."""
    portable = target == PORTABLE
    where = ("", NATIVE) if portable else (target, cpu)
    validator = _engine(*where, {n: v for n, v in settings.items() if n != _STRATEGY})
    if settings.get(_STRATEGY, "cranelift") == "cranelift" and not portable:
        return Configured(validator, validator)
    return Configured(_engine(target, cpu, settings), validator, portable)


def _engine(target: str, cpu: str, settings: dict[str, str]) -> wasmtime.Engine:
    config = wasmtime.Config()
    try:
        if cpu != NATIVE:
            # Naming even the host's own triple turns the detection of CPU features off.
            config.target = target
            for feature in X86_64_LEVELS[cpu] if target.startswith("x86_64") else ():
                config.cranelift_flag_enable(f"has_{_FLAG_NAMES.get(feature, feature)}")
        for name, value in settings.items():
            if name != _COLLECTOR:
                number = int(value) if name in _SIZES else _CHOICES.get(name, _BOOL)[value]
                getattr(_bindings, _setter(name))(config.ptr(), number)
        if settings.get(_COLLECTOR) == _NO_COLLECTOR:
            config.gc_support = False
        return wasmtime.Engine(config)
    except wasmtime.WasmtimeError as refusal:
        raise SettingsRefused(str(refusal)) from None


def validate(configured: Configured, wasm: bytearray, kind: str) -> None:
    """Raise ModuleRefused unless ``wasm`` is valid; FeatureLacking too, for a component.

    The package validates core modules only; to validate a component, compile it.
    """
    try:
        if kind == "core":
            wasmtime.Module.validate(configured.validator, wasm)
        else:
            component.Component(configured.validator, wasm)
    except wasmtime.WasmtimeError as refusal:
        raise _refusal(_plain(str(refusal)), kind) from None


def compile_module(configured: Configured, wasm: bytearray, kind: str) -> Any:
    """Compile. Raises ModuleRefused, or FeatureLacking for a module that is valid.

    wasmtime validates each function just before it compiles it, so a module with an error at
    its end would cost a whole compile. Validating a core module first costs 1 to 2 % of that.
    The package cannot validate a component without compiling it.
    """
    try:
        if kind != "core":
            return component.Component(configured.engine, wasm)
        validate(configured, wasm, kind)
        return wasmtime.Module(configured.engine, wasm)
    except wasmtime.WasmtimeError as failure:
        message = _plain(str(failure))
    if configured.is_portable:
        validate(configured, wasm, kind)
    if kind == "core" or configured.engine is not configured.validator:
        # Winch calls valid components invalid. Only a compile by cranelift could tell which
        # are, so do not say that any is.
        raise FeatureLacking(message)
    raise _refusal(message, kind)


def externs(configured: Configured, module: Any) -> tuple[list[Extern], list[Extern]]:
    """List imports and exports in the module's order."""
    if isinstance(module, component.Component):
        both = module.type.imports(configured.engine), module.type.exports(configured.engine)
        imports, exports = ([("", name, *_item(of)) for name, of in o.items()] for o in both)
        return imports, exports
    return (
        [(i.module, i.name or "", *_kind_and_type(i.type)) for i in module.imports],
        [("", e.name, *_kind_and_type(e.type)) for e in module.exports],
    )


def call(
    configured: Configured, artifact: bytearray, kind: str, export: str, args: list[int]
) -> Any:
    """Load an artifact; return what its function returns."""
    engine = configured.engine
    store = wasmtime.Store(engine)
    function: Any
    if kind == "core":
        module = wasmtime.Module.deserialize(engine, artifact)
        function = wasmtime.Instance(store, module, []).exports(store)[export]
    else:
        loaded = component.Component.deserialize(engine, artifact)
        instance = component.Linker(engine).instantiate(store, loaded)
        function = instance.get_func(store, export)
    return function(store, *args)


def _refusal(message: str, kind: str) -> Exception:
    # A component that needs a feature which the engine lacks gets a message without an offset.
    if kind == "component" and offset_in(message) is None and _LACKING.search(message):
        return FeatureLacking(message)
    return ModuleRefused(message)


def _plain(message: str) -> str:
    """Return the first cause of a chain of causes: that is the engine's own sentence."""
    causes = _CAUSES.split(message.strip(), maxsplit=1)[-1]
    return _CAUSE_NUMBER.split(causes)[-1].strip()


def _setter(name: str) -> str:
    return f"wasmtime_config_{name}_set"


def _kind_and_type(item: Any) -> tuple[str, str]:
    if isinstance(item, wasmtime.FuncType):
        params, results = (", ".join(map(str, of)) for of in (item.params, item.results))
        return "function", f"({params}) -> ({results})"
    if isinstance(item, wasmtime.GlobalType):
        return "global", f"{'mut ' if item.mutable else ''}{item.content}"
    if isinstance(item, wasmtime.TableType):
        return "table", f"{item.element} {bounds(item.limits.min, item.limits.max)}"
    if isinstance(item, wasmtime.MemoryType):
        shared = " shared" if getattr(item, "is_shared", False) else ""
        return "memory", f"pages {bounds(item.limits.min, item.limits.max)}{shared}"
    return ("tag" if type(item).__name__ == "TagType" else "other"), type(item).__name__


def _item(item: Any) -> tuple[str, str]:
    # Newer packages wrap the type in an extern.
    item = getattr(item, "ty", item)
    name = type(item).__name__.removesuffix("Type").removeprefix("Component").lower()
    return ("function", "func") if name == "func" else ("other", name)
