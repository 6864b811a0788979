"""What every measurement is given."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wasmkiln.v1.module_service_pb2 import EngineCapabilities
from wasmkilnd.engines.install import InstalledEngine

from bench.lab import BenchError, Daemon, engines_or_install, make_state
from bench.modules import Modules, fetch_all, small_modules


@dataclass(frozen=True)
class Target:
    """What the daemon compiles for when a request doesn't say."""

    engine: InstalledEngine
    triple: str
    cpu: str

    @property
    def packages(self) -> Path:
        """Where its Python finds the engine."""
        found = next(self.engine.path.glob("lib/python*/site-packages"), None)
        if found is None:
            raise BenchError(f"{self.engine.path} has no site-packages")
        return found


@dataclass(frozen=True)
class Setting:
    """One daemon with default settings, its engines, the modules, and how long to measure."""

    daemon: Daemon
    targets: Mapping[str, Target]
    modules: Modules
    folder: Path
    quick: bool
    """Whether to show only that all can be measured."""

    def rounds(self, usual: int) -> int:
        """Return how often to do what is usually done so often."""
        return 1 if self.quick else usual

    def seconds(self, usual: float) -> float:
        """Return for how long to measure."""
        return usual / 10 if self.quick else usual

    @property
    def sizes(self) -> tuple[int, int]:
        """The least and the greatest number of entries of a tier."""
        return (10, 100) if self.quick else (10**3, 10**6)

    @property
    def sizes_by_call(self) -> tuple[int, int]:
        """The same where each entry takes a call."""
        return (10, 100) if self.quick else (10**3, 3 * 10**4)

    @property
    def wasmtime(self) -> Target:
        """The engine of measurements that need only one."""
        return self.targets["wasmtime"]


@contextmanager
def setting(quick: bool) -> Iterator[Setting]:
    """Start all that is measured, and end it afterwards. Raises BenchError."""
    engines = engines_or_install()
    with tempfile.TemporaryDirectory(prefix="wasmkiln-bench-") as name:
        folder = Path(name)
        modules = small_modules(folder) if quick else fetch_all(folder)
        state = make_state(folder / "state", engines)
        with Daemon(state) as daemon:
            yield Setting(daemon, _targets(daemon, engines), modules, folder, quick)


def _targets(daemon: Daemon, engines: Mapping[str, InstalledEngine]) -> dict[str, Target]:
    with daemon.client() as client:
        served = {each.engine.name: each for each in client.capabilities().engines}
    missing = sorted(set(engines) - set(served))
    if missing:
        raise BenchError(f"the daemon does not serve {' and '.join(missing)}: see its log")
    return {name: _target(engine, served[name]) for name, engine in engines.items()}


def _target(engine: InstalledEngine, served: EngineCapabilities) -> Target:
    host = next(target for target in served.targets if target.host)
    return Target(engine, host.triple, host.cpus[0])
