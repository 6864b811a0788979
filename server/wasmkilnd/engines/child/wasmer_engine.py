"""wasmer by its Python package of version 1.x: core modules only.

It compiles with cranelift, or with singlepass, its fast compiler, where that package is installed
too. singlepass compiles for CPUs with AVX only, and no SIMD. The engine is Universal: any process
with the same wasmer can map and run its code.
"""

from __future__ import annotations

from typing import Any

import wasmer
from wasmer import engine as wasmer_engines
from wasmer import target as wasmer_targets
from wasmer_compiler_cranelift import Compiler

try:
    from wasmer_compiler_singlepass import Compiler as Singlepass
except ImportError:
    Singlepass = None

from .cpu import NATIVE, X86_64_LEVELS, host_features
from .describe import CORE_PREAMBLE
from .engine import Extern, FeatureLacking, ModuleRefused, SettingsRefused, bounds

_COMPILER = "compiler"
_COMPILERS = {"cranelift": Compiler, "singlepass": Singlepass}
_SPEED = (
    "singlepass takes an eighth of cranelift's time, and its code runs slower; it lacks some"
    " proposals, and needs a CPU with AVX."
)
_LAYOUT = "How code is laid out; only wasmer's universal engine needs no linker."

_TARGETS = (
    *(f"{cpu}-unknown-linux-{libc}" for libc in ("gnu", "musl") for cpu in ("x86_64", "aarch64")),
    *("x86_64-apple-darwin", "aarch64-apple-darwin"),
    *("x86_64-pc-windows-msvc", "riscv64gc-unknown-linux-gnu"),
)

# wasmer's names for the features of /proc/cpuinfo, from its CpuFeatures documentation.
_OTHER_NAMES = {"sse4_1": "sse4.1", "sse4_2": "sse4.2", "bmi1": "bmi"}
_SAME_NAMES = ("sse3", "ssse3", "popcnt", "avx", "avx2", "bmi2", "lzcnt", "avx512dq", "avx512vl")
_FEATURE_NAMES = {**_OTHER_NAMES, **{name: name for name in _SAME_NAMES}}

# The package represents a value's type as a number.
_VALUE_TYPES = {
    int(getattr(wasmer.Type, name)): name.replace("_", "").lower()
    for name in ("I32", "I64", "F32", "F64", "V128", "EXTERN_REF", "FUNC_REF")
}

_EXTERN_KINDS = {
    wasmer.FunctionType: "function",
    wasmer.GlobalType: "global",
    wasmer.TableType: "table",
    wasmer.MemoryType: "memory",
}


def describe() -> dict[str, Any]:
    """Return a description."""
    host = str(wasmer_targets.Triple.host())
    return {
        "name": "wasmer",
        "version": wasmer.__version__,
        "core_version": wasmer.__core_version__,
        "compiler": "cranelift",
        "host_triple": host,
        "host_cpu_features": sorted(
            _FEATURE_NAMES[name] for name in _FEATURE_NAMES.keys() & host_features()
        ),
        "candidate_targets": [host, *(target for target in _TARGETS if target != host)],
        "candidate_settings": {
            "engine": (_LAYOUT, {"universal": {"engine": "universal"}}),
            _COMPILER: (_SPEED, {one: {_COMPILER: one} for one in _COMPILERS if Singlepass}),
        },
        "kinds": ["core"],
        "compiler_setting": _COMPILER,
    }


def configure(target: str, cpu: str, settings: dict[str, str]) -> wasmer.Store:
    """Return a store for the target. Raises SettingsRefused."""
    compiler = _COMPILERS.get(settings.get(_COMPILER, "cranelift"))
    if compiler is None:
        raise SettingsRefused("wasmer-compiler-singlepass is not installed")
    try:
        chosen = () if cpu == NATIVE else (_target(target, cpu),)
        store = wasmer.Store(wasmer_engines.Universal(compiler, *chosen))
        if compiler is not Compiler:
            # singlepass tells only when it compiles that it does not know the target.
            wasmer.Module(store, CORE_PREAMBLE)
    except BaseException as refusal:  # A panic derives from BaseException.
        raise SettingsRefused(str(refusal)) from None
    return store


def validate(configured: wasmer.Store, wasm: bytearray, kind: str) -> None:
    """Raise ModuleRefused unless ``wasm`` is valid."""
    if not wasmer.Module.validate(configured, bytes(wasm)):
        # That returns only yes or no; compiling stops at the same place, with a message.
        compile_module(configured, wasm, kind)
        raise ModuleRefused("not a valid module")


def compile_module(configured: wasmer.Store, wasm: bytearray, kind: str) -> wasmer.Module:
    """Compile. Raises ModuleRefused, or FeatureLacking where wasmer validates but gives up.

    wasmer itself validates all of a module before it compiles the first function.
    """
    data = bytes(wasm)
    try:
        return wasmer.Module(configured, data)
    except MemoryError:
        raise
    except BaseException as failure:  # A panic derives from BaseException.
        message = str(failure)
    # A panic leaves locks of its store poisoned, so validate in a new one.
    if wasmer.Module.validate(wasmer.Store(wasmer_engines.Universal(Compiler)), data):
        raise FeatureLacking(message)
    raise ModuleRefused(message.removeprefix("Validation error: "))


def externs(configured: Any, module: Any) -> tuple[list[Extern], list[Extern]]:
    """List imports and exports in the module's order."""
    return (
        [(i.module, i.name, *_kind_and_type(i.type)) for i in module.imports],
        [("", e.name, *_kind_and_type(e.type)) for e in module.exports],
    )


def call(configured: Any, artifact: bytearray, kind: str, export: str, args: list[int]) -> Any:
    """Load an artifact; return what its function returns."""
    module = wasmer.Module.deserialize(configured, bytes(artifact))
    return getattr(wasmer.Instance(module).exports, export)(*args)


def _target(triple: str, cpu: str) -> wasmer_targets.Target:
    features = wasmer_targets.CpuFeatures()
    if triple.startswith("x86_64"):
        features.add("sse2")
        for feature in X86_64_LEVELS[cpu]:
            if feature in _FEATURE_NAMES:
                features.add(_FEATURE_NAMES[feature])
    return wasmer_targets.Target(wasmer_targets.Triple(triple), features)


def _kind_and_type(item: Any) -> tuple[str, str]:
    kind = _EXTERN_KINDS.get(type(item), "other")
    if kind == "function":
        params, results = (", ".join(map(_type, of)) for of in (item.params, item.results))
        return kind, f"({params}) -> ({results})"
    if kind == "global":
        return kind, f"{'mut ' if item.mutable else ''}{_type(item.type)}"
    if kind == "table":
        return kind, f"{_type(item.type)} {bounds(item.minimum, item.maximum)}"
    if kind == "memory":
        shared = " shared" if item.shared else ""
        return kind, f"pages {bounds(item.minimum, item.maximum)}{shared}"
    return kind, str(item)


def _type(value: Any) -> str:
    return _VALUE_TYPES.get(int(value), str(value))
