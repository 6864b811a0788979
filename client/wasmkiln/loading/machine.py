"""Whether code made for a target and a cpu level can run on this machine."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from wasmkiln.errors import IncompatibleEngine

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_SYSTEMS = {"darwin": ("darwin", "macos"), "win32": ("windows",)}

# Of each level of the x86-64 psABI, the features that an engine makes use of, by their names in
# /proc/cpuinfo (pni is SSE3, abm has LZCNT). A virtual machine that hides another one, such as
# movbe, is no reason to refuse. Each level has those of the levels before it.
_LEVELS: dict[str, frozenset[str]] = {
    "x86-64-v2": frozenset(["cx16", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"]),
    "x86-64-v3": frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "fma"]),
    "x86-64-v4": frozenset(["avx512dq", "avx512f", "avx512vl"]),
}


def check(target: str, cpu: str) -> None:
    """Raises IncompatibleEngine unless code for `target` and `cpu` can run here.

    Where the machine doesn't tell its features, and for "native", whose features the
    artifact doesn't name, the engine's own check has to do.
    """
    machine = platform.machine().lower()
    architecture = _ARCHITECTURES.get(machine, machine)
    systems = _SYSTEMS.get(sys.platform, (sys.platform,))
    parts = target.split("-")
    system_fits = any(part.startswith(systems) for part in parts[1:])
    if parts[0] != architecture or not system_fits:
        raise IncompatibleEngine(
            f"the artifact was made for {target}, and this machine is {architecture} {systems[0]}",
            metadata={"target": target},
        )
    features = cpu_features()
    missing = required_features(cpu) - features if features else frozenset()
    if missing:
        raise IncompatibleEngine(
            f"the artifact needs a {cpu} CPU, and this one lacks {', '.join(sorted(missing))}: "
            "compile for a lower cpu level, such as baseline",
            metadata={"cpu": cpu, "missing": ",".join(sorted(missing))},
        )


def required_features(cpu: str) -> frozenset[str]:
    """What a cpu level needs; nothing for "baseline", "native" and others without a level."""
    if cpu not in _LEVELS:
        return frozenset()
    names = list(_LEVELS)
    levels = names[: names.index(cpu) + 1]
    return frozenset().union(*(_LEVELS[level] for level in levels))


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The first CPU's feature flags; empty where the system doesn't tell them."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()
