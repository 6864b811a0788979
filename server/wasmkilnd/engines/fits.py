"""Choose code that a host's own engine loads, from what that engine says of itself.

A host sends the section that its engine writes into each artifact (``child.section``), or the
SHA-256 of one that it sent before: the compatibility key. Only an engine of the same version and
target is asked. What loaders compare was learned from it when it started (``child.describe``): each
value of a setting was tried beside the defaults. So no rule of a loader is written down here but
two: code may need less of the CPU, and fewer proposals, than the host has. Settings may do more
together than each does alone: before the first module is compiled for a host, a tiny one is, and
what that code says of itself is compared (``EngineRegistry.confirm``).

Of all code that loads, the choice is what most hosts share: the default CPU level and the default
settings, where they fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from wasmkilnd import errors
from wasmkilnd.engines.child import section
from wasmkilnd.engines.child.section import NO_COLLECTOR, Section, Value
from wasmkilnd.model import Compared, CompileSpec, Sample

KEY_BYTES = 32
# How many keys are known at most, and of one caller.
_MOST, _MOST_OF_ONE = 256, 64
_PROPOSAL, _COLLECTOR = "proposal ", "collector"
# A setting that changes more, such as the compiler, is no name for one of its changes.
_FEW = 3
# How many differences an error names.
_MOST_NAMED = 8
# Loaders take code with another value, but a host that sets it means what its code computes.
_MEANT = "cranelift_nan_canonicalization"


@dataclass(frozen=True, slots=True)
class Fit:
    """Code that a host's engine loads.

    - ``cpus``: the levels that the host can run, the one to choose first.
    - ``settings``: those that differ from the engine's defaults.
    - ``made``: the key of what this code says of itself; empty until it was compiled and compared.
    """

    engine_id: str
    target: str
    cpus: tuple[str, ...]
    settings: Mapping[str, str]
    made: str = ""

    @property
    def code(self) -> tuple[str, str, str, Mapping[str, str]]:
        """The engine, target, CPU level and settings to choose."""
        return self.engine_id, self.target, self.cpus[0], self.settings


class Fits:
    """What is known of hosts' engines, by key. The oldest go first, those of a greedy caller."""

    def __init__(self) -> None:
        """Know nothing."""
        self.known = dict[str, Fit]()
        # Called after ``known`` has changed.
        self.changed: Callable[[], object] = lambda: None
        self._callers = dict[str, str]()

    def get(self, shown: bytes) -> Fit | None:
        """Return what is known of a key, or of a section."""
        known = shown if len(shown) == KEY_BYTES else hashlib.sha256(shown).digest()
        return self.known.get(known.hex())

    def keep(self, shown: bytes, caller: str, fit: Fit) -> None:
        """Remember what a section that a caller sent stands for."""
        key, callers = hashlib.sha256(shown).hexdigest(), self._callers
        self.known.pop(key, None)
        own = [each for each, whose in callers.items() if whose == caller and each in self.known]
        is_greedy = len(own) >= _MOST_OF_ONE
        if is_greedy or len(self.known) >= _MOST:
            goes = own[0] if is_greedy else next(iter(self.known))
            del self.known[goes]
            callers.pop(goes, None)
        self.known[key], callers[key] = fit, caller
        self.changed()


@lru_cache(maxsize=64)
def read(shown: bytes) -> Section:
    """Return what a section says. Raises INVALID_REQUEST."""
    try:
        return section.parse(shown)
    except section.Unreadable as why:
        raise errors.invalid_request(f"cannot read compatibility: {why}", "compatibility") from None


def usual(mine: Compared) -> Section:
    """Return what an engine says of itself with the defaults."""
    return Section(mine.version, mine.triple, dict(mine.cpu), dict(mine.rest))


def nearness(mine: Compared, host: Section) -> tuple[bool, bool]:
    """Return by what to choose among what was learned of engines: the largest is nearest."""
    return mine.version == host.version, _machine(mine.triple) == _machine(host.triple)


def fit(engine_id: str, mine: Compared, host: Section) -> tuple[Fit | None, list[str]]:
    """Return the code to make for a host, and why its engine would refuse all that can be made."""
    is_version, is_machine = nearness(mine, host)
    if not is_version:
        why = f"it is of version {host.version}, and {engine_id} is of version {mine.version}"
        return None, [why]
    if not is_machine:
        why = f"it is on {host.triple}, and this daemon is on {mine.triple}: ask one on the same"
        return None, [why]
    first, *others = mine.levels
    lacking = {each: _beyond(mine.levels[each], host.cpu) for each in (first, *reversed(others))}
    cpus = tuple(level for level, names in lacking.items() if not names)
    if not cpus:
        fewest: list[str] = min(lacking.values(), key=len)
        return None, [f"its CPU lacks {', '.join(fewest)}"]
    code, settings, free = dict(mine.rest), dict[str, str](), _free(mine)
    for sample in mine.samples:
        if not (sample.loads and sample.takes) or _MEANT in sample.settings:
            changed, named = _as_shown(sample, host.rest, free)
            if any(code.get(each, 0) != value for each, value in changed.items()):
                code |= changed
                settings |= named
    # A collector that this engine cannot be made for: code for none loads with any.
    for sample in mine.samples:
        without = sample.changed.get(_COLLECTOR) == NO_COLLECTOR and sample.loads
        if without and code[_COLLECTOR] not in (host.rest.get(_COLLECTOR), NO_COLLECTOR):
            code |= sample.changed
            settings |= sample.settings
    made = "" if settings else mine.keys[cpus[0]]
    return Fit(engine_id, mine.target, cpus, settings, made), differences(mine, code, host.rest)


def differences(mine: Compared, code: Mapping[str, Value], host: Mapping[str, Value]) -> list[str]:
    """Say for what of ``code`` a host's engine refuses it."""
    # Which setting changes a value, for people.
    names, free = dict[str, str](), _free(mine)
    for sample in sorted(mine.samples, key=lambda each: len(each.changed)):
        if len(sample.settings) == 1 and len(sample.changed) <= _FEW:
            names = {each: next(iter(sample.settings)) for each in sample.changed} | names
    if code[_COLLECTOR] == NO_COLLECTOR:
        free.add(_COLLECTOR)
    found = dict[str, None]()
    for each in sorted(code.keys() | host.keys()):
        ours, theirs = code.get(each, 0), host.get(each, 0)
        is_less = each.startswith(_PROPOSAL) and theirs
        if ours != theirs and not is_less and each not in free:
            found[f"{names.get(each, each)} is {theirs} there, and {ours} in what can be made"] = (
                None
            )
    return list(found)[:_MOST_NAMED]


def contradicts(mine: Compared, name: str, value: str, spec: CompileSpec) -> bool:
    """Return whether a host that gets ``spec`` refuses code with another value of a setting."""
    in_force = spec.settings.get(name, value)
    if value == in_force:
        return False
    # The first setting of a sample is what was tried, others are what it needs.
    tried = {
        each.settings[name]: each for each in mine.samples if next(iter(each.settings)) == name
    }
    if value.isdecimal():  # Of numbers only a few were tried.
        return not all(each.loads and each.takes for each in tried.values())
    ours, theirs = tried.get(value), tried.get(in_force)
    # A value that was not tried is the default, or changes nothing.
    return not ((not ours or ours.loads) and (not theirs or theirs.takes))


def _as_shown(
    sample: Sample, host: Mapping[str, Value], free: Collection[str]
) -> tuple[Mapping[str, Value], Mapping[str, str]]:
    """Return what a sample changes, and its settings, as the host shows them; else nothing.

    A number is the host's own: it stands where the sample has the sample's. What a host may have
    more of is left out where the sample changes something else: an engine with Winch may have
    proposals, or a collector, that Winch lacks by default.
    """
    ((name, value), *others) = sample.settings.items()
    if value.isdecimal() and not others:
        at = [each for each, changed in sample.changed.items() if changed == int(value)]
        theirs = {host.get(each, 0) for each in at}
        number = theirs.pop() if len(theirs) == 1 else None
        return (dict.fromkeys(at, number), {name: str(number)}) if number is not None else ({}, {})
    told = {
        each: value
        for each, value in sample.changed.items()
        if value not in (0, NO_COLLECTOR) or not each.startswith((_PROPOSAL, _COLLECTOR))
        if each not in free
    }
    is_shown = all(host.get(each, 0) == value for each, value in (told or sample.changed).items())
    return (sample.changed, sample.settings) if is_shown else ({}, {})


def _free(mine: Compared) -> set[str]:
    """Return what loaders do not compare."""
    return {each for one in mine.samples if one.loads and one.takes for each in one.changed}


def _beyond(code: Mapping[str, Value], host: Mapping[str, Value]) -> list[str]:
    """Return what code needs of a CPU, and a host's lacks."""
    return [name for name, needed in code.items() if needed and host.get(name, 0) != needed]


def _machine(triple: str) -> tuple[str, str]:
    """Return what a loader compares of a triple: the architecture and the operating system."""
    architecture, _, rest = triple.partition("-")
    return architecture, rest.partition("-")[2].partition("-")[0]
