"""Whether code made for a target and a cpu level can run on this machine."""

from __future__ import annotations

import platform
import sys
from functools import cache
from pathlib import Path

from wasmkiln.errors import IncompatibleEngine

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_SYSTEMS = {"darwin": ("darwin", "macos"), "win32": ("windows",)}

# The features of each level of the x86-64 psABI that engines use, by their names in /proc/cpuinfo
# (pni is SSE3, abm has LZCNT). Others, such as movbe, may be hidden by a virtual machine, and are
# not required. Each level also has the features of the levels before it.
_LEVELS: dict[str, frozenset[str]] = {
    "x86-64-v2": frozenset(["cx16", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"]),
    "x86-64-v3": frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "fma"]),
    "x86-64-v4": frozenset(["avx512dq", "avx512f", "avx512vl"]),
}


TRIPLE = f"{platform.machine().lower()}-unknown-{sys.platform}"
"""As far as `check` compares it."""


def check(target: str, cpu: str) -> None:
    """Raise IncompatibleEngine unless code for `target` and `cpu` can run on this machine.

    Leave the check to the engine where the system does not list the CPU's features, and for
    "native", whose features the artifact does not name.
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
    required = required_features(cpu)
    features = cpu_features() if required else frozenset()
    missing = required - features if features else frozenset()
    if missing:
        raise IncompatibleEngine(
            f"the artifact needs a {cpu} CPU, and this one lacks {', '.join(sorted(missing))}: "
            "compile for a lower cpu level, such as baseline",
            metadata={"cpu": cpu, "missing": ",".join(sorted(missing))},
        )


def known_cpus() -> frozenset[str]:
    """Return the cpu levels of this machine's architecture that this client knows."""
    levels = _LEVELS if TRIPLE.startswith(("x86_64-", "amd64-")) else ()
    return frozenset({"baseline", "native", *levels})


def required_features(cpu: str) -> frozenset[str]:
    """Return the features that a cpu level needs; none for "baseline", "native" and others."""
    if cpu not in _LEVELS:
        return frozenset()
    names = list(_LEVELS)
    levels = names[: names.index(cpu) + 1]
    return frozenset().union(*(_LEVELS[level] for level in levels))


@cache
def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the first CPU's feature flags; empty where the system does not list them."""
    try:
        with cpuinfo.open() as lines:  # no further than needed: a machine may have 200 CPUs
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "flags":
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()
