"""The levels of CPU features that compiled code may use.

x86-64-v2, -v3 and -v4 are those of the x86-64 psABI supplement. Features are named as in
/proc/cpuinfo; each level lists only features that some engine can use.
"""

from __future__ import annotations

from functools import lru_cache

BASELINE = "baseline"
NATIVE = "native"

# The target of wasmtime's interpreter: its code runs on every 64-bit little-endian machine, this
# one too.
PORTABLE = "pulley64"

_V2 = ("sse3", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16")
_V3 = (*_V2, "avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt")
_V4 = (*_V3, "avx512f", "avx512dq", "avx512vl")

X86_64_LEVELS = {BASELINE: (), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}

# Two features have other names in /proc/cpuinfo.
_CPUINFO_NAMES = {"pni": "sse3", "abm": "lzcnt"}


@lru_cache(maxsize=None)
def host_features() -> frozenset[str]:
    """Return this machine's CPU features; empty where the kernel does not list them."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:
            for line in cpuinfo:
                name, _, words = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return frozenset(_CPUINFO_NAMES.get(word, word) for word in words.split())
    except OSError:
        pass
    return frozenset()


def default_level(architecture: str, is_host: bool, features: frozenset[str]) -> str:
    """Return the level for a request that names none.

    One artifact should serve a fleet of mixed machines, and nearly all x86-64 servers have
    x86-64-v3. A host without it, or of an architecture without levels, gets code for itself; a
    foreign target gets code that any of its machines can run.
    """
    if not is_host:
        return BASELINE
    if architecture == "x86_64" and features.issuperset(_V3):
        return "x86-64-v3"
    return NATIVE


def offered_levels(architecture: str, is_host: bool) -> tuple[str, ...]:
    """Return the levels that a worker tries with its engine at start."""
    levels = tuple(X86_64_LEVELS) if architecture == "x86_64" else (BASELINE,)
    return (*levels, NATIVE) if is_host else levels
