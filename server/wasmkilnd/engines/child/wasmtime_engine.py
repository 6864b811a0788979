"""wasmtime with cranelift, or with Winch, its fast compiler: core modules and components.

Settings carry the names of ``wasmtime.Config``'s own attributes, so that a host can apply
``changed_settings`` one by one to load the artifact. The attribute ``strategy`` takes no
``winch``, although the package's library has it: see ``_set_strategy``. There is no attribute
``collector``, and the library cannot choose one: it is read from an artifact, or left out.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from typing import Any

import wasmtime
from wasmtime import _bindings, component

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
from .wasmtime_metadata import collector_of
from .wasmtime_settings import (
    BOOL,
    COLLECTOR,
    NO_COLLECTOR,
    PROPOSAL_DESCRIPTION,
    SETTINGS,
    STRATEGIES,
    STRATEGY,
)

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


@dataclass(frozen=True)
class Configured:
    """An engine that compiles, and one that decides whether a module is valid.

    They differ for Winch, whose engine calls modules invalid that need a proposal it lacks.
    """

    engine: wasmtime.Engine
    validator: wasmtime.Engine


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
        settings = {name: allowed for name, (allowed, _) in SETTINGS.items() if _has_setting(name)}
        if collector := collector_of(probe, host):
            settings[COLLECTOR] = [collector, NO_COLLECTOR]
        proposals = {name: BOOL for name in dir(wasmtime.Config) if name.startswith("wasm_")}
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
                **{name: text for name, (_, text) in SETTINGS.items()},
                **dict.fromkeys(proposals, PROPOSAL_DESCRIPTION),
            },
            kinds=["core", "component"],
            compiler_setting=STRATEGY,
        )

    def configure(self, target: str, cpu: str, settings: dict[str, str]) -> Configured:
        """Return an engine. Raises SettingsRefused; wasmtime aborts if it refuses them later."""
        others = {name: value for name, value in settings.items() if name != STRATEGY}
        strategy = settings.get(STRATEGY, "cranelift")
        validator = self._engine(target, cpu, others)
        if strategy == "cranelift":
            return Configured(validator, validator)
        return Configured(self._engine(target, cpu, others, strategy), validator)

    def _engine(
        self, target: str, cpu: str, settings: dict[str, str], strategy: str = "cranelift"
    ) -> wasmtime.Engine:
        config = wasmtime.Config()
        try:
            if cpu != NATIVE:
                # Naming even the host's own triple turns the detection of CPU features off.
                config.target = target
                for feature in X86_64_LEVELS[cpu] if target.startswith("x86_64") else ():
                    config.cranelift_flag_enable(f"has_{_FLAG_NAMES.get(feature, feature)}")
            for name, value in settings.items():
                if name != COLLECTOR:
                    setattr(config, name, _as_config_value(value))
            if settings.get(COLLECTOR) == NO_COLLECTOR:
                config.gc_support = False
            if strategy != "cranelift":
                _set_strategy(config, strategy)
            return wasmtime.Engine(config)
        except (wasmtime.WasmtimeError, TypeError) as refusal:
            raise SettingsRefused(str(refusal)) from None

    def validate(self, configured: Configured, wasm: bytearray, kind: str) -> None:
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

    def compile(self, configured: Configured, wasm: bytearray, kind: str) -> Any:
        """Compile. Raises ModuleRefused, or FeatureLacking for a module that is valid.

        wasmtime validates each function just before it compiles it, so a module with an error at
        its end would cost a whole compile. Validating a core module first costs 1 to 2 % of that.
        The package cannot validate a component without compiling it.
        """
        if kind == "core":
            self.validate(configured, wasm, kind)
        try:
            if kind == "core":
                return wasmtime.Module(configured.engine, wasm)
            return component.Component(configured.engine, wasm)
        except wasmtime.WasmtimeError as failure:
            message = _plain(str(failure))
        if kind == "core" or configured.engine is not configured.validator:
            # Winch calls valid components invalid. Only a compile by cranelift could tell which
            # are, so do not say that any is.
            raise FeatureLacking(message)
        raise _refusal(message, kind)

    def serialize(self, module: Any) -> bytearray:
        """Return the artifact."""
        artifact: bytearray = module.serialize()
        return artifact

    def externs(self, configured: Configured, module: Any) -> tuple[list[Extern], list[Extern]]:
        """List imports and exports in the module's order."""
        if isinstance(module, component.Component):
            kind, engine = module.type, configured.engine
            return (
                [Extern("", name, *_item(item)) for name, item in kind.imports(engine).items()],
                [Extern("", name, *_item(item)) for name, item in kind.exports(engine).items()],
            )
        return (
            [Extern(i.module, i.name or "", *_kind_and_type(i.type)) for i in module.imports],
            [Extern("", e.name, *_kind_and_type(e.type)) for e in module.exports],
        )

    def call(
        self,
        configured: Configured,
        artifact: bytearray,
        kind: str,
        export: str,
        arguments: list[int],
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
    return hasattr(wasmtime.Config, name) and (name != STRATEGY or _takes_strategies())


def _takes_strategies() -> bool:
    return hasattr(_bindings, "wasmtime_config_strategy_set")


def _set_strategy(config: wasmtime.Config, strategy: str) -> None:
    """Set it by the C function: the package's own setter refuses ``winch``.

    A strategy that the library was built without makes it abort later, when the engine is made.
    """
    if strategy not in STRATEGIES or not _takes_strategies():
        raise SettingsRefused(f"this wasmtime has no strategy {strategy}")
    _bindings.wasmtime_config_strategy_set(config.ptr(), STRATEGIES[strategy])


def _as_config_value(value: str) -> bool | int | str:
    if value in BOOL:
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
