"""What is served: engines with their workers, and what a request means for each.

A reload changes which engines requests can choose, while calls run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from wasmkilnd import errors
from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.engines.names import Names
from wasmkilnd.engines.pool import WorkerPool
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.fingerprint import fingerprint
from wasmkilnd.model import FAST_SETTINGS, CompileSpec, EngineCapabilities, Kind

# Callers ask for the same few specs again and again, and to compute a fingerprint costs as much
# as a cache hit.
_REMEMBERED_SPECS = 1024
# How a job or a worker ends whose engine's files are not there any more.
_BY_REMOVAL = frozenset({Reason.COMPILER_CRASHED, Reason.WORKER_UNAVAILABLE})


@dataclass(eq=False)
class ServedEngine:
    """One engine version with its workers."""

    capabilities: EngineCapabilities
    pool: WorkerPool
    # Returns whether the engine's files are still there.
    is_installed: Callable[[], bool] = lambda: True

    def __post_init__(self) -> None:
        # The id by which a request names the engine, and its name without the version.
        self.id, self.name = self.capabilities.identity.id, self.capabilities.identity.name
        name, value = FAST_SETTINGS.get(self.name, ("", ""))
        offered = self.capabilities.settings
        # Whether the engine has a fast compiler that works here.
        self.has_fast = any(each.name == name and value in each.allowed for each in offered)
        self._resolved = lru_cache(_REMEMBERED_SPECS)(partial(_resolve, self.capabilities))

    def takes(self, kind: Kind) -> bool:
        """Return whether the engine runs modules of this kind at all."""
        return kind in self.capabilities.kinds

    def spec(self, target: str, cpu: str, settings: Mapping[str, str]) -> CompileSpec:
        """Check a request against the engine's capabilities, and fill in the defaults.

        Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN.
        """
        return self._resolved(target, cpu, tuple(sorted(settings.items())))

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
    targets = {each.triple: each for each in capabilities.targets}
    chosen = targets.get(target or next((one for one in targets if targets[one].host), ""))
    if chosen is None:
        raise errors.target_unsupported(engine_id, target, list(targets))
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
    digest = fingerprint(capabilities.identity, chosen.triple, cpu, features, in_force)
    return CompileSpec(capabilities.identity, chosen.triple, cpu, in_force, changed, digest)


class EngineTable:
    """The engines that requests can choose, and those that only finish what they began.

    All namespaces share one. For one event loop.
    """

    def __init__(self, served: Sequence[ServedEngine], names: Names) -> None:
        """Serve ``served``; see ``serve``."""
        # By id, also those that are served no more: work that chose one of them goes on.
        self.known: dict[str, ServedEngine] = {}
        # Ids of engines that were removed, also before this daemon started.
        self.removed: Collection[str] = ()
        self.serve(served, names)

    def serve(self, served: Sequence[ServedEngine], names: Names) -> None:
        """Let requests choose among ``served`` from now on, by their ids and by ``names``."""
        # By id; those that names stand for come first, which clients choose. Replaced as a whole.
        order = sorted(served, key=lambda engine: names.by_name.get(engine.name) != engine.id)
        self.served = {engine.id: engine for engine in order}
        self.names = names
        named = {name: each for name, each in names.by_name.items() if each in self.served}
        # The id of what is served by each word that a request may name it by: id or name.
        self.ids = named | {each: each for each in self.served}
        self.known |= self.served

    def explained(self, engine_id: str, failure: WasmkilnError) -> WasmkilnError:
        """Return ENGINE_REMOVED for what broke because the engine's files or workers are gone."""
        ended = failure.reason is Reason.SERVER_DRAINING and engine_id not in self.served
        broken = failure.reason in _BY_REMOVAL and not self.known[engine_id].is_installed()
        if not (ended or broken):
            return failure
        return errors.engine_removed(engine_id, [each for each in self.served if each != engine_id])

    def not_served(self, engine: str) -> WasmkilnError:
        """Return ENGINE_UNKNOWN for an id or a name; ENGINE_REMOVED for what was served before."""
        engine = self.names.by_name.get(engine, engine)
        if (
            engine in self.known
            or engine in self.removed
            or any(engine == each.name for each in self.known.values())
        ):
            return errors.engine_removed(engine, self.served)
        return errors.engine_unknown(engine, self.served)
