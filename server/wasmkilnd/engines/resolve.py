"""From a request's wishes to the one spec that they mean for an engine."""

from __future__ import annotations

from collections.abc import Mapping

from wasmkilnd import errors
from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.fingerprint import fingerprint
from wasmkilnd.model import CompileSpec, EngineCapabilities, TargetInfo


def resolve(
    capabilities: EngineCapabilities, target: str, cpu: str, settings: Mapping[str, str]
) -> CompileSpec:
    """Check the wishes against what the engine said of itself, and fill in the defaults.

    Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN.
    """
    engine_id = capabilities.identity.id
    chosen = _target(capabilities, target)
    cpu = cpu or chosen.cpus[0]
    if cpu not in chosen.cpus:
        raise errors.cpu_unsupported(engine_id, chosen.triple, cpu, chosen.cpus)
    in_force = {setting.name: setting.default for setting in capabilities.settings}
    allowed = {setting.name: setting.allowed for setting in capabilities.settings}
    changed = {}
    for name, value in settings.items():
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
