"""Runs one corpus module in one engine and prints what it computed.

    python runs.py ENGINE MODULE (--wasm FILE | --artifact FILE)

This file is a program for an *engine's* interpreter: CPython 3.10 with wasmer, or 3.11 and
later with wasmtime. It needs the standard library and that engine, and nothing of wasmkiln,
so that it stands for a host that got an artifact and has only its own engine at hand.

With `--wasm` the engine compiles the module itself, with its default settings; with
`--artifact` it deserializes native code. Everything after that is the same, so the two must
print the same line: `{"result": ...}`. Where the answer is known from elsewhere (a SHA-256, a
decompressed text), the recipe checks it too, and the program fails if the module is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Stub = Callable[..., Any]
    Stubs = dict[str, Stub]
    # A core module, compiled or deserialized, that can be started once: imports of WASI get WASI,
    # an imported memory a fresh one, an imported function its stub, or one that fails when called.
    Core: TypeAlias = "WasmtimeCore | WasmerCore"

WASI = "wasi_snapshot_preview1"

OPTIONS = argparse.Namespace(strategy=None)


class WrongResultError(Exception):
    """The module ran, and what it computed is not what is known to be right."""


def check(what: str, got: object, want: object) -> None:
    if got != want:
        raise WrongResultError(f"{what}: got {got!r}, want {want!r}")


# --- Engines: the little that a recipe needs from one -----------------------------------


def _unexpected(module: str, name: str) -> Stub:
    def stub(*_: object) -> Any:
        raise RuntimeError(f"the module called its import {module}.{name}, which has no stub")

    return stub


def wasmtime_engine() -> Any:
    """Return an engine for artifacts of the compiler that the command line names."""
    import wasmtime

    config = wasmtime.Config()
    if OPTIONS.strategy == "winch":
        from wasmtime import _bindings

        _bindings.wasmtime_config_strategy_set(config.ptr(), 2)
    return wasmtime.Engine(config)


class WasmtimeCore:
    def __init__(self, data: bytes, artifact: bool) -> None:
        import wasmtime

        self._lib = wasmtime
        self._engine = wasmtime_engine()
        make = wasmtime.Module.deserialize if artifact else wasmtime.Module
        self._module = make(self._engine, data)
        self._store = wasmtime.Store(self._engine)
        self._memory: Any = None
        self._exports: Any = None

    def start(self, stubs: Stubs | None = None, argv: Sequence[str] = ()) -> None:
        lib = self._lib
        linker = lib.Linker(self._engine)
        linker.define_wasi()
        config = lib.WasiConfig()
        config.argv = list(argv)
        config.inherit_stdout()
        config.inherit_stderr()
        self._store.set_wasi(config)
        # A module may import one function under several types, which a linker refuses:
        # only what is not WASI is defined here.
        for item in self._module.imports:
            if item.module == WASI:
                continue
            if isinstance(item.type, lib.MemoryType):
                extern = self._memory = lib.Memory(self._store, item.type)
            else:
                stub = (stubs or {}).get(item.name) or _unexpected(item.module, item.name)
                extern = lib.Func(self._store, item.type, stub)
            linker.define(self._store, item.module, item.name, extern)
        self._exports = linker.instantiate(self._store, self._module).exports(self._store)
        if self._memory is None:
            self._memory = self._exports.get("memory")

    def call(self, name: str, *args: int | float) -> Any:
        return self._exports[name](self._store, *args)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._memory.read(self._store, address, address + size))

    def write(self, address: int, data: bytes) -> None:
        self._memory.write(self._store, data, address)

    def global_value(self, name: str) -> int:
        return int(self._exports[name].value(self._store))


class WasmerCore:
    def __init__(self, data: bytes, artifact: bool) -> None:
        import wasmer
        from wasmer_compiler_cranelift import Compiler

        self._lib = wasmer
        self._store = wasmer.Store(wasmer.engine.Universal(Compiler))
        if artifact:
            self._module = wasmer.Module.deserialize(self._store, data)
        else:
            self._module = wasmer.Module(self._store, data)
        self._memory: Any = None
        self._exports: Any = None

    def start(self, stubs: Stubs | None = None, argv: Sequence[str] = ()) -> None:
        lib = self._lib
        items = list(self._module.imports)
        if any(item.module == WASI for item in items):
            state = lib.wasi.StateBuilder(argv[0] if argv else "module")
            for argument in argv[1:]:
                state.argument(argument)
            version = lib.wasi.get_version(self._module, strict=False)
            imports = state.finalize().generate_import_object(self._store, version)
        else:
            imports = lib.ImportObject()
        others: dict[str, dict[str, Any]] = {}
        for item in items:
            if item.module == WASI:
                continue
            if isinstance(item.type, lib.MemoryType):
                extern = self._memory = lib.Memory(self._store, item.type)
            else:
                stub = (stubs or {}).get(item.name) or _unexpected(item.module, item.name)
                extern = lib.Function(self._store, stub, item.type)
            others.setdefault(item.module, {})[item.name] = extern
        for module, names in others.items():
            imports.register(module, names)
        self._exports = lib.Instance(self._module, imports).exports
        if self._memory is None and any(item.name == "memory" for item in self._module.exports):
            self._memory = self._exports.memory

    def call(self, name: str, *args: int | float) -> Any:
        return getattr(self._exports, name)(*args)

    def read(self, address: int, size: int) -> bytes:
        return bytes(memoryview(self._memory.buffer)[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        self._memory.uint8_view(address)[: len(data)] = list(data)

    def global_value(self, name: str) -> int:
        return int(getattr(self._exports, name).value)


ENGINES: dict[str, Any] = {"wasmtime": WasmtimeCore, "wasmer": WasmerCore}


def u32(value: int) -> int:
    return value & 0xFFFFFFFF


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- Recipes: what each module is asked to do -------------------------------------------


# itk-wasm: a WASI reactor that takes its inputs as JSON and arrays in its own memory.

_ADDRESS = "data:application/vnd.itk.address,0:"


class Itk:
    def __init__(self, core: Core, *args: str) -> None:
        self._core = core
        core.start(argv=["itk", "--memory-io", *args])
        core.call("_initialize")

    def _array(self, data: bytes, index: int, part: int) -> str:
        address = u32(self._core.call("itk_wasm_input_array_alloc", 0, index, part, len(data)))
        self._core.write(address, data)
        return f"{_ADDRESS}{address}"

    def _json(self, value: object, index: int) -> None:
        data = json.dumps(value).encode()
        self._core.write(
            u32(self._core.call("itk_wasm_input_json_alloc", 0, index, len(data))), data
        )

    def give_bytes(self, data: bytes, index: int) -> None:
        self._json({"size": len(data), "data": self._array(data, index, 0)}, index)

    def run(self) -> None:
        check("exit status", self._core.call("itk_wasm_delayed_start"), 0)

    def take_bytes(self, index: int = 0) -> bytes:
        address = u32(self._core.call("itk_wasm_output_array_address", 0, index, 0))
        size = u32(self._core.call("itk_wasm_output_array_size", 0, index, 0))
        return self._core.read(address, size)


_TEXT = b"Fire a module once, serve it everywhere. " * 64
# `_TEXT`, compressed by itk-compress-stringify: the input of its opposite.
_TEXT_ZSTD = (
    "data:application/zstd;base64,KLUv/WBACZUBAJQCRmlyZSBhIG1vZHVsZSBvbmNlLCBzZXJ2ZSBp"
    "dCBldmVyeXdoZXJlLiABAKEQ81UZ"
)


def itk_decompress(core: Core) -> Any:
    itk = Itk(core, "0", "0", "--parse-string")
    itk.give_bytes(_TEXT_ZSTD.encode(), 0)
    itk.run()
    text = itk.take_bytes()
    check("decompressed text", text, _TEXT)
    return digest(text)


# Others on WASI.


def pii_shield(core: Core) -> Any:
    """Go's own compiler: redact secrets from a log line, with a fixed salt."""
    core.start(argv=["pii-shield"])
    core.call("_initialize")

    def give(data: bytes) -> tuple[int, int]:
        address = u32(core.call("allocate", len(data)))
        core.write(address, data)
        return address, len(data)

    core.call("init_config", *give(json.dumps({"salt": "wasmkiln"}).encode()))
    line = b'{"user":"ada","password":"hunter2-Zq81xP","card":"4111 1111 1111 1111"}'
    packed = core.call("redact", *give(line)) & (1 << 64) - 1
    text = core.read(packed >> 32, u32(packed)).decode()
    if "hunter2" in text:
        raise WrongResultError(f"the secret is still in {text!r}")
    return text


# Rust.


def source_map(core: Core) -> Any:
    """Parse a source map's mappings and hand each to a callback, in original order."""
    seen: list[list[int]] = []

    def mapping_callback(*values: int) -> None:
        seen.append([u32(value) for value in values])

    core.start({"mapping_callback": mapping_callback})
    mappings = b"CAAC,IAAI,IAAM,SAAUA,GAClB,OAAOC,IAAID;CCDb,IAAI,IAAM,SAAUE,GAClB,OAAOA"
    address = u32(core.call("allocate_mappings", len(mappings)))
    core.write(address, mappings)
    parsed = u32(core.call("parse_mappings", address))
    check("parse error", core.call("get_last_error") if parsed == 0 else 0, 0)
    core.call("by_original_location", parsed)
    return seen


# Go (TinyGo) and Zig: a formatter each, with no imports at all.


def gofmt(core: Core) -> Any:
    core.start()
    core.call("_initialize")
    source = b"package  main\nfunc  add(a int,b int)int{return a+b}\n"
    core.write(u32(core.call("alloc", len(source))), source)
    status = core.call("format")
    text = core.read(u32(core.call("output_ptr")), u32(core.call("output_len"))).decode()
    check("status", (status, text[:13]), (1, "package main\n"))
    return text


def zig_fmt(core: Core) -> Any:
    core.start()
    source = b"pub fn add(a:i32,b:i32)i32{return a+b;}"
    address = u32(core.call("alloc", len(source)))
    core.write(address, source)
    start, size = core.call("format", address, len(source))
    text = core.read(u32(start), u32(size)).decode()
    check("formatted", text[:30], "pub fn add(a: i32, b: i32) i32")
    return text


# AssemblyScript.


def as_sha256(core: Core) -> Any:
    core.start()
    message = _TEXT[:300]
    core.write(core.global_value("input"), message)
    core.call("digest", len(message))
    result = core.read(core.global_value("output"), 32).hex()
    check("SHA-256", result, digest(message))
    return result


# JavaScript.

_JAVASCRIPT = b"""(() => {
  const sieve = (n) => { const p = []; for (let i = 2; p.length < n; i++)
    if (p.every((q) => i % q)) p.push(i); return p; };
  const words = "fire a module once serve it everywhere".split(" ");
  return { primes: sieve(12), longest: words.reduce((a, b) => b.length > a.length ? b : a),
           big: (2n ** 100n).toString(), match: /(\\w+)where/.exec("everywhere")[1],
           pi: [1, 2, 3].map((n) => Math.PI.toFixed(n)) };
})()"""
_JAVASCRIPT_VALUE = {
    "primes": [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37],
    "longest": "everywhere",
    "big": str(2**100),
    "match": "every",
    "pi": ["3.1", "3.14", "3.142"],
}

# What the functions of quickjs-emscripten 0.32.0 are called after minification, as its
# dist/emscripten-module.mjs assigns them.
_QTS = {
    "init": "u",
    "malloc": "v",
    "QTS_NewRuntime": "K",
    "QTS_NewContext": "N",
    "QTS_Eval": "pa",
    "QTS_Dump": "oa",
}


def quickjs(core: Core) -> Any:
    """Emscripten: QuickJS evaluates, and dumps the value as JSON."""

    def no_environment(count: int, size: int) -> int:
        core.write(u32(count), bytes(4))
        core.write(u32(size), bytes(4))
        return 0

    # Of 20 imports these are called: environ_get, environ_sizes_get and the time.
    core.start({"e": lambda *_: 0, "f": no_environment, "p": lambda: 0.0})

    def string(text: bytes) -> int:
        address = u32(core.call(_QTS["malloc"], len(text) + 1))
        core.write(address, text + b"\0")
        return address

    core.call(_QTS["init"])
    runtime = core.call(_QTS["QTS_NewRuntime"])
    context = core.call(_QTS["QTS_NewContext"], runtime, 0)
    value = core.call(
        _QTS["QTS_Eval"], context, string(_JAVASCRIPT), len(_JAVASCRIPT), string(b"eval.js"), 0, 0
    )
    dumped = u32(core.call(_QTS["QTS_Dump"], context, value))
    text = core.read(dumped, 4096).split(b"\0", 1)[0].decode()
    result = json.loads(text)
    check("value", result, _JAVASCRIPT_VALUE)
    return result


RECIPES: dict[str, Callable[[Any], Any]] = {
    "itk-parse-string-decompress-2": itk_decompress,
    "pii-shield": pii_shield,
    "source-map": source_map,
    "quickjs": quickjs,
    "gofmt": gofmt,
    "as-sha256": as_sha256,
    "as-sha256-simd": as_sha256,
    "zig-fmt": zig_fmt,
}
"""What is run; other modules of the corpus are compiled only."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="runs.py", description="Run one corpus module.")
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("module", choices=sorted(RECIPES), metavar="module")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--wasm", type=Path, help="compile this module here")
    source.add_argument("--artifact", type=Path, help="load this native code instead")
    parser.add_argument("--strategy", choices=["cranelift", "winch"], help="wasmtime's compiler")
    options = parser.parse_args(argv, OPTIONS)
    recipe = RECIPES[options.module]
    path: Path = options.artifact or options.wasm
    result = recipe(ENGINES[options.engine](path.read_bytes(), options.artifact is not None))
    print(json.dumps({"result": result}, sort_keys=True))


if __name__ == "__main__":
    main()
