"""One engine that is served: what it can do, its workers, and what a request means for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

from wasmkilnd import errors
from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.engines.workers.pool import WorkerPool
from wasmkilnd.fingerprint import fingerprint
from wasmkilnd.model import FAST_SETTINGS, CompileSpec, EngineCapabilities, Kind, TargetInfo

# Callers ask for the same few specs again and again, and to compute a fingerprint costs as much
# as a cache hit.
_REMEMBERED_SPECS = 1024


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """One engine version with its workers."""

    capabilities: EngineCapabilities
    pool: WorkerPool
    is_installed: Callable[[], bool] = lambda: True
    """Return whether the engine's files are still there."""
    """Say that this process uses the engine's files no more."""
    _resolved: Callable[..., CompileSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cached = lru_cache(_REMEMBERED_SPECS)(partial(_resolve, self.capabilities))
        object.__setattr__(self, "_resolved", cached)

    @property
    def id(self) -> str:
        """The id by which a request names the engine."""
        return self.capabilities.identity.id

    @property
    def name(self) -> str:
        """The engine's name, without its version."""
        return self.capabilities.identity.name

    def takes(self, kind: Kind) -> bool:
        """Return whether the engine runs modules of this kind at all."""
        return kind in self.capabilities.kinds

    def spec(self, target: str, cpu: str, settings: Mapping[str, str]) -> CompileSpec:
        """Check a request against the engine's capabilities, and fill in the defaults.

        Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN.
        """
        return self._resolved(target, cpu, tuple(sorted(settings.items())))

    @property
    def has_fast(self) -> bool:
        """Whether the engine has a fast compiler that works here."""
        name, value = FAST_SETTINGS.get(self.name, ("", ""))
        return any(
            setting.name == name and value in setting.allowed
            for setting in self.capabilities.settings
        )

    @property
    def compilers(self) -> frozenset[str]:
        """The compilers that a request can choose."""
        fast = [FAST_SETTINGS[self.name][1]] if self.has_fast else []
        return frozenset({self.capabilities.identity.compiler, *fast})

    def fast(self, spec: CompileSpec, settings: Mapping[str, str]) -> CompileSpec | None:
        """Return ``spec`` with the engine's fast compiler; None if there is no such choice.

        ``settings`` are those of the request: where they name a compiler, it is chosen.
        """
        name, value = FAST_SETTINGS.get(self.name, ("", ""))
        if not self.has_fast or name in settings:
            return None
        return self.spec(spec.target, spec.cpu, {**spec.changed_settings, name: value})


def _resolve(
    capabilities: EngineCapabilities, target: str, cpu: str, settings: tuple[tuple[str, str], ...]
) -> CompileSpec:
    engine_id = capabilities.identity.id
    chosen = _target(capabilities, target)
    cpu = cpu or chosen.cpus[0]
    if cpu not in chosen.cpus:
        raise errors.cpu_unsupported(engine_id, chosen.triple, cpu, chosen.cpus)
    in_force = {setting.name: setting.default for setting in capabilities.settings}
    allowed = {setting.name: setting.allowed for setting in capabilities.settings}
    changed = {}
    for name, value in settings:
        if name not in in_force:
            raise errors.setting_unknown(engine_id, name, in_force)
        if value not in allowed[name]:
            raise errors.setting_value_unknown(engine_id, name, value, allowed[name])
        if value != in_force[name]:
            in_force[name] = changed[name] = value
    features = capabilities.host_cpu_features if cpu == NATIVE else ()
    return CompileSpec(
        engine=capabilities.identity,
        target=chosen.triple,
        cpu=cpu,
        settings=in_force,
        changed_settings=changed,
        fingerprint=fingerprint(capabilities.identity, chosen.triple, cpu, features, in_force),
    )


def _target(capabilities: EngineCapabilities, target: str) -> TargetInfo:
    for candidate in capabilities.targets:
        if candidate.triple == target or (not target and candidate.host):
            return candidate
    raise errors.target_unsupported(
        capabilities.identity.id, target, [t.triple for t in capabilities.targets]
    )
