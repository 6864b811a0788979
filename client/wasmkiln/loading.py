"""Load an artifact into the engine of this interpreter, or raise the reason why not.

Engines accept many damaged artifacts and crash on others: of 30 with a few random
bytes changed, wasmer loaded 10 and wasmtime 16. So everything that can be
checked without the engine is checked before it sees a byte, in this order:

    1. the artifact has bytes, and they have the SHA-256 of its header
    2. with trusted keys: one of them signed the header
    3. this machine has the target's architecture and system, and the CPU the features of the
       artifact's cpu level
    4. the installed engine is one that takes artifacts of this version: wasmer of the same
       version only, wasmtime of the same major version
    5. the settings that differ from the engine's default exist here too; then deserialize, or
       map the artifact's file

`host_store` checks files by rules of its own, and begins with step 3. An engine is imported only
when an artifact of it is loaded.

Raise EngineNotInstalled where the engine cannot be imported, IncompatibleEngine where the
artifact does not fit, and AttestationInvalid where no trusted key signed it.
"""

from __future__ import annotations

import atexit
import os
import platform
import struct
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from wasmkiln import errors
from wasmkiln._source import kind_of
from wasmkiln._untrusted import quoted
from wasmkiln.attestation import verify_header
from wasmkiln.errors import EngineNotInstalled, IncompatibleEngine
from wasmkiln.shared import engine_id
from wasmkiln.v1.types_pb2 import KIND_COMPONENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    import wasmtime
    from typing_extensions import TypeVar  # a type checker has it

    from wasmkiln._header_fields import Call
    from wasmkiln.v1 import types_pb2

    # What a module is, which its file says, and for a type checker the caller: `kind`.
    Kind = TypeVar("Kind", default=wasmtime.Module)
    Engine: TypeAlias = wasmtime.Engine
    Loadable: TypeAlias = Any  # An `Artifact`, or an entry of the host store.

# This machine. A target is `<architecture>-<vendor>-<system>…`.

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_SYSTEMS = {"darwin": ("darwin", "macos"), "win32": ("windows",)}
_machine = platform.machine().lower()
ARCHITECTURE = _ARCHITECTURES.get(_machine, _machine)
SYSTEMS = _SYSTEMS.get(sys.platform, (sys.platform,))
"""The names that targets give this system."""
PORTABLE = "pulley64"
"""The target of wasmtime's interpreter, whose code runs on 64-bit little-endian machines."""

# The features of each level of the x86-64 psABI that engines use, by their names in /proc/cpuinfo
# (pni is SSE3, abm has LZCNT). Others, such as movbe, may be hidden by a virtual machine, and are
# not required.
_V2 = {"cx16", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"}
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "fma"}
_V4 = _V3 | {"avx512dq", "avx512f", "avx512vl"}
_LEVELS = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}


def check_machine(target: str, cpu: str) -> None:
    """Raise IncompatibleEngine unless code for `target` and `cpu` can run on this machine.

    Leave the check to the engine where the system does not list the CPU's features, and for
    "native", whose features the artifact does not name.
    """
    if target == PORTABLE and sys.maxsize > 2**32 and sys.byteorder == "little":
        return
    first, *others = target.split("-")
    if first != ARCHITECTURE or not any(part.startswith(SYSTEMS) for part in others):
        raise IncompatibleEngine(
            f"the artifact was made for {target}, and this machine is {ARCHITECTURE} {SYSTEMS[0]}",
            metadata={"target": target},
        )
    if cpu not in _LEVELS or not (features := cpu_features()):
        return
    if missing := sorted(_LEVELS[cpu] - features):
        raise IncompatibleEngine(
            f"the artifact needs a {cpu} CPU, and this one lacks {', '.join(missing)}: "
            "compile for a lower cpu level, such as baseline",
            metadata={"cpu": cpu, "missing": ",".join(missing)},
        )


def check_runs(header: Any) -> None:
    """Raise IncompatibleEngine unless code with this header can run on this machine."""
    if header.engine.name in _ENGINES:
        check_machine(header.target, header.cpu)


def is_unfit(error: BaseException) -> bool:
    """Return whether target or CPU are at fault; code of another version would not help then."""
    kinds = (errors.TargetUnsupported, IncompatibleEngine)
    return isinstance(error, kinds) and not {"target", "cpu"}.isdisjoint(error.metadata)


@cache
def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the first CPU's feature flags; empty where the system does not list them."""
    with suppress(OSError), cpuinfo.open() as lines:
        for line in lines:  # no further than needed: a machine may have 200 CPUs
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return frozenset(value.split())
    return frozenset()


# The engines of this interpreter.

_ENGINES = {
    "wasmtime": "pip install '{}'",
    # PyPI has wheels for CPython 3.7 to 3.10; on others it is a stub that raises ImportError.
    "wasmer": "it needs CPython 3.10 or older and pip install '{}'",
}
"""The engines that this client knows, and what it takes to import each."""

# What wasmtime says of code for "native" that needs more than this CPU has.
_LACKS_FEATURE = "not available on the host"
_WINCH = 2  # in wasmtime_strategy_enum of wasmtime/config.h


@cache
def installed(package: str) -> str:
    """Return the version of an engine's package. Raise ImportError where it is missing.

    importlib.metadata takes longer to import than an artifact to load, and searches the whole
    path. So look beside an imported package first, where pip puts its metadata.
    """
    module = sys.modules.get(package)
    if module is not None and module.__file__:
        beside = os.path.dirname(os.path.dirname(module.__file__))  # noqa: PTH120
        start, end = f"{package}-", ".dist-info"
        for name in os.listdir(beside):  # noqa: PTH208  Half the time that pathlib takes.
            if name.startswith(start) and name.endswith(end):
                return name[len(start) : -len(end)]
    from importlib.metadata import version

    return version(package)


def fits(name: str, version: str) -> bool:
    """Return whether the engine installed here may load artifacts of this version.

    wasmer itself does not compare versions; wasmtime compares what its major version leaves open.
    """
    try:
        here = installed(name)
    except ImportError:
        return True  # loading says so better
    return here.split(".")[0] == version.split(".")[0] if name == "wasmtime" else here == version


def engine_name(into: Any) -> str:
    """Return the name of the engine that `into` belongs to; of an installed one for None.

    Raise TypeError for an object of neither engine.
    """
    if into is None:
        return "wasmtime" if "wasmtime" in sys.modules or find_spec("wasmtime") else "wasmer"
    for name in _ENGINES:
        if sys.modules.get(name) and isinstance(into, _engine_class(name)):
            return name
    raise TypeError(
        f"a module loads into a wasmtime.Engine or a wasmer.Store, not a {type(into).__name__}"
    )


def _import(name: str, version: str = "") -> None:
    """Import an engine. Raise EngineNotInstalled, or IncompatibleEngine by `fits`."""
    if name not in _ENGINES:
        what, known = quoted(name) or "an unnamed engine", " and ".join(sorted(_ENGINES))
        raise EngineNotInstalled(f"cannot load artifacts of {what}: this client knows {known}")
    wanted, about = f"{name}=={version}" if version else name, {"engine": f"{name}-{version}"}
    try:
        import_module(name)
        here = installed(name)
    except (ImportError, OSError) as error:
        how = _ENGINES[name].format(wanted)
        why = f"cannot import {name} here: {how} ({error})"
        raise EngineNotInstalled(why, metadata=about if version else None) from error
    if version and not fits(name, version):
        raise IncompatibleEngine(
            f"the artifact was made by {name} {version}, and {name} {here} is installed here: ask"
            f" the daemon for an engine {name}-{here.split('.')[0]}.…, or pip install '{wanted}'",
            metadata={**about, "installed": here},
        )


def _engine_class(name: str) -> Any:
    return sys.modules[name].Engine if name == "wasmtime" else sys.modules[name].Store


def _module_class(name: str, kind: types_pb2.Kind) -> Any:
    if name == "wasmtime" and kind == KIND_COMPONENT:
        return import_module("wasmtime.component").Component
    return sys.modules[name].Module


# The engines of this process, by what they were made for: a module, its Store and what it imports
# have to share one. Threads may make one twice; the one that is kept first is everybody's.
_engines: dict[tuple[Any, ...], Any] = {}
# wasmtime's own destructors fail once Python has taken its modules apart.
atexit.register(_engines.clear)


def _engine_for(name: str, settings: Mapping[str, str], target: str = "") -> Any:
    if target == PORTABLE:
        settings = {**settings, "target": target}
    key = (name,) if name == "wasmer" else tuple(sorted(settings.items()))
    if key not in _engines:
        made = _store() if name == "wasmer" else _engine(settings)
        return _engines.setdefault(key, made)
    return _engines[key]


def _store() -> Any:
    import wasmer

    try:
        from wasmer_compiler_cranelift import Compiler
    except ImportError:  # loading needs no compiler
        return wasmer.Store(wasmer.engine.Universal())
    return wasmer.Store(wasmer.engine.Universal(Compiler))


def _engine(changed_settings: Mapping[str, str]) -> Any:
    import wasmtime

    config = wasmtime.Config()
    for name, text in changed_settings.items():
        value = int(text) if text.isdecimal() else {"true": True, "false": False}.get(text, text)
        setter = getattr(wasmtime._bindings, f"wasmtime_config_{name}_set", None)
        try:
            if name == "collector":
                # The package's library has one collector, and compares it when it loads.
                if text == "none":
                    config.gc_support = False
            # Properties, and truth values only: the names come from a daemon.
            elif text != "winch" and isinstance(getattr(wasmtime.Config, name, None), property):
                setattr(config, name, value)
            elif setter and text in ("winch", "true", "false"):
                # The package's library has settings that its class lacks, and Winch.
                setter(config.ptr(), _WINCH if text == "winch" else value)
            else:
                raise LookupError("it does not have this setting")
        except Exception as error:
            raise IncompatibleEngine(
                f"cannot make an engine with {name}={text}: the wasmtime installed here refuses "
                f"it: {error}",
                metadata={"setting": name},
            ) from error
    return wasmtime.Engine(config)


def _remembered(module: Any, engine: Any) -> Any:
    """Remember the engine of a module for as long as the module lives. Return the module."""
    with suppress(AttributeError):  # wasmer's takes no attributes
        module._wasmkiln_engine = engine
    return module


def engine_of(module: Any) -> Any:
    """Return the engine that wasmkiln loaded a module into, to make a Store or imports with.

    For a wasmtime.Module or Component it is a `wasmtime.Engine`: run the module in a
    `wasmtime.Store(engine_of(module))`. For a wasmer.Module it is the `wasmer.Store` that this
    process uses where a call names none. Raise LookupError for a module of anybody else.
    """
    wasmer = sys.modules.get("wasmer")
    if wasmer is not None and isinstance(module, wasmer.Module):
        return _engine_for("wasmer", {})
    engine = getattr(module, "_wasmkiln_engine", None)
    if engine is None:
        raise LookupError("wasmkiln did not load this module")
    return engine


# What an engine says of itself.

EMPTY = b"\0asm\1\0\0\0"
"""The empty module. To compile it takes wasmtime 0.15 ms."""
_SECTION = b".wasmtime.engine\0"
_shown: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()


def shown_by(into: Any) -> bytes:
    """Return what `into` says of itself: the section that its engine writes into each artifact.

    `into` is a `wasmtime.Engine`, or the bytes of anything that one compiled, or such a section.
    Empty for None and engines of others. Raise ValueError for other bytes.
    """
    if isinstance(into, (bytes, bytearray, memoryview)):
        return section_of(bytes(into))
    wasmtime = sys.modules.get("wasmtime")
    if wasmtime is None or not isinstance(into, wasmtime.Engine):
        return b""
    if into not in _shown:
        _shown[into] = section_of(bytes(wasmtime.Module(into, EMPTY).serialize()))
    return _shown[into]


def section_of(artifact: bytes) -> bytes:
    """Return the section in which wasmtime says what it compiled an artifact for.

    Return a section as it is. Raise ValueError for anything else.
    """
    if artifact[:1] == b"\0" and artifact[:4] != EMPTY[:4]:
        return artifact
    try:
        if artifact[:5] != b"\x7fELF\2":
            raise ValueError
        (at,) = struct.unpack_from("<Q", artifact, 0x28)
        size, count, names = struct.unpack_from("<HHH", artifact, 0x3A)
        rows = [struct.unpack_from("<IIQQQQ", artifact, at + n * size) for n in range(count)]
        for name, _, _, _, start, length in rows:
            if artifact[rows[names][4] + name :][: len(_SECTION)] == _SECTION:
                return artifact[start : start + length]
    except (ValueError, struct.error, IndexError, OverflowError):
        pass
    raise ValueError("these bytes are nothing that wasmtime compiled")


# Loading.


def host_engine(artifact: Loadable) -> Any:
    """Return the engine for `Artifact.engine`.

    Raise EngineNotInstalled, IncompatibleEngine or AttestationInvalid.
    """
    header = artifact.header
    if artifact.trusted_keys:
        verify_header(header, artifact.trusted_keys)
    _import(header.engine.name, header.engine.version)
    return _engine_for(header.engine.name, _settings_of(artifact), header.target)


def _settings_of(artifact: Loadable) -> dict[str, str]:
    changed = dict(artifact.header.changed_settings)
    # An unsigned header may leave out a setting that the call asked for: apply both.
    return changed if artifact.trusted_keys else {**artifact.requested_settings, **changed}


def load_verified(
    artifact: Loadable, engine: Any, *, advice: str = "", explain: bool = True
) -> Any:
    """Return the module of an artifact whose bytes and signature need no check.

    Of an entry of the host store that has a `descriptor`, wasmtime maps the file.
    Without `explain`, leave the version to wasmtime, which compares it itself: to find out which
    one is installed takes a tenth of a load. Raise EngineNotInstalled, or IncompatibleEngine,
    with the `advice` if the caller's own `engine` refuses the artifact.
    """
    header, name = artifact.header, artifact.header.engine.name
    check_runs(header)
    if explain or name != "wasmtime" or not sys.modules.get(name):
        _import(name, header.engine.version)
    own, advice = engine is not None, f"; {advice}" if advice and engine is not None else ""
    engine = engine if own else _engine_for(name, _settings_of(artifact), header.target)
    if not isinstance(engine, expected := _engine_class(name)):
        raise IncompatibleEngine(
            f"the artifact loads into a {name}.{expected.__name__}, not a {type(engine).__name__}"
            + advice
        )
    kind, file = _module_class(name, header.kind), getattr(artifact, "descriptor", None)
    if name != "wasmtime" or file is None:
        make = partial(kind.deserialize, engine, artifact.bytes)
    else:  # the file may have another name by now, or none
        make = partial(kind.deserialize_file, engine, f"/proc/self/fd/{file}")
    try:
        return _remembered(make(), engine)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException
        changed = ", ".join(f"{k}={v}" for k, v in sorted(header.changed_settings.items()))
        about = dict(header.changed_settings) or {"engine": engine_id(header.engine)}
        if _LACKS_FEATURE in str(error):
            about["cpu"] = header.cpu
        raise IncompatibleEngine(
            f"{name} {installed(name)} refuses the artifact of {engine_id(header.engine)}, made"
            f" with {changed or 'default settings'}: {' '.join(str(error).split())}{advice}",
            metadata=about,
        ) from error


def expected(kind: type[Any] | None, module: Any) -> Any:
    """Return a module that is of the kind that the caller named, if any. Raise TypeError."""
    if kind is None or isinstance(module, kind):
        return module
    raise TypeError(f"expected a {kind.__name__}, and the module is a {type(module).__name__}")


# Compiling in this process, when no daemon does it.


def compile_within(left_s: Callable[[], float], wasm: bytes, call: Call) -> Any:
    """Return the module of an engine in this process.

    No engine can be stopped while it compiles: with no time left, this stops waiting, and the
    thread goes on until it has finished. wasmer compiles without letting another thread run, so
    that the deadline passes unnoticed. Raise DeadlineExceeded, NotWasm, ModuleInvalid,
    EngineNotInstalled or IncompatibleEngine: this one too where the request names an engine by
    its id, and another version is installed here.
    """
    target, cpu, kind = call.target, call.cpu, kind_of(wasm)
    if kind is None:
        raise errors.NotWasm("the bytes are neither a WebAssembly module nor a component")
    if cpu not in ("", "baseline", "native", *(_LEVELS if ARCHITECTURE == "x86_64" else ())):
        raise IncompatibleEngine(
            f"cannot compile here for the cpu {quoted(cpu)}: this client does not know it",
            metadata={"cpu": cpu},
        )
    if target or cpu:
        check_machine(target or f"{ARCHITECTURE}-{SYSTEMS[0]}", cpu)
    compiled: Future[Any] = Future()

    def run() -> None:
        try:
            compiled.set_result(compile_here(wasm, kind, call))
        except BaseException as error:
            compiled.set_exception(error)

    # A daemon thread: the process may end while it still compiles.
    threading.Thread(target=run, name="wasmkiln-compile", daemon=True).start()
    with suppress(TimeoutError, FutureTimeoutError):  # the same from Python 3.11 on
        return compiled.result(max(0.0, left_s()))
    raise errors.DeadlineExceeded("compiling in this process took longer than the call's timeout_s")


def compile_here(wasm: bytes, kind: types_pb2.Kind, call: Call) -> Any:
    """Compile a module in this process, without any daemon, with the engine of a name or an id.

    Raise EngineNotInstalled, ModuleInvalid, or IncompatibleEngine, also for another version than
    that of the id.
    """
    name, _, version = call.engine.partition("-")
    _import(name)
    here = installed(name)
    if version and version != here:
        raise IncompatibleEngine(
            f"cannot compile for {quoted(call.engine)} here: {name} {here} is installed",
            metadata={"engine": call.engine, "installed": here},
        )
    if name == "wasmer" and (call.settings or kind == KIND_COMPONENT):
        raise IncompatibleEngine("wasmer compiles here core modules with default settings only")
    engine = _engine_for(name, call.settings, call.target) if call.into is None else call.into
    try:
        return _remembered(_module_class(name, kind)(engine, wasm), engine)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise errors.ModuleInvalid(
            f"{name} {here} cannot compile the module here: {' '.join(str(error).split())}"
        ) from error


# What a client has loaded.

# A module that nobody else holds is unloaded when it is forgotten.
LIMIT = 128
# How often a client looks for optimised code where it holds a fast compiler's, and for native code
# where it holds portable code: that may come with a change of the daemon's engines.
LOOK_AGAIN_S = 1.0
LOOK_FOR_NATIVE_S = 600.0


@dataclass
class Loaded:
    """A module, and whether it stands in for a better one: fast or portable code."""

    module: Any
    is_fast: bool
    is_portable: bool = False
    looked_s: float = 0.0

    def look_again(self) -> bool:
        """Return whether to look for better code now; if so, not again for a while."""
        now_s, pause_s = time.monotonic(), LOOK_AGAIN_S if self.is_fast else LOOK_FOR_NATIVE_S
        if not (self.is_fast or self.is_portable) or now_s - self.looked_s < pause_s:
            return False
        self.looked_s = now_s
        return True


class LoadedModules:
    """Modules by what was asked for, and into which engine. Safe for many threads at once.

    It forgets the least recently used.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        # The engine is kept with the module: its id is part of the key, and may not be reused.
        self._held: OrderedDict[tuple[Any, ...], tuple[Loaded, Any]] = OrderedDict()

    def get(
        self, request: tuple[Any, ...], into: Any, fast: bool = False, portable: bool = False
    ) -> Loaded | None:
        """Return the module, or None; also one that stands in, if it is fast or portable code."""
        key = *request, id(into)
        with self._lock:
            held, _ = self._held.get(key, (None, None))
            if held is None or held.is_fast > fast or held.is_portable > portable:
                return None
            self._held.move_to_end(key)
            return held

    def put(self, request: tuple[Any, ...], into: Any, loaded: Loaded) -> Any:
        """Keep a module. Return it, or the one that another thread kept first.

        An optimised one takes the place of a fast one, and either that of a portable one.
        """
        key = *request, id(into)
        with self._lock:
            held, _ = self._held.get(key, (None, None))
            if held and (held.is_portable, held.is_fast) <= (loaded.is_portable, loaded.is_fast):
                return held.module
            loaded.looked_s = time.monotonic()
            self._held[key] = loaded, into
            self._held.move_to_end(key)
            while len(self._held) > self._limit:
                self._held.popitem(last=False)
            return loaded.module
