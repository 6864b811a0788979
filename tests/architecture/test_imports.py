"""Imports go one way, and the daemon never imports an engine."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.architecture.imports import (
    CLIENT,
    ROOT,
    SERVER,
    circles,
    graph,
    imported_modules,
    modules,
    room_of,
)

# What every room may import from the root: values, errors, ports and small data structures.
CORE = {
    *("model", "errors", "ports", "wire", "fingerprint", "admission", "requests"),
    *("waiters", "singleflight", "redis_address", "reloadable", "fair_share", "network"),
    *("slices", "wait_budget", "ownership", "account", "whole_files", "pins", "uses"),
}
SERVICES = {"compile_service", "module_service", "pin_service", "quarantine"}

# The packages among them. Others import the package, not its files; ROOT_FILES has its imports.
CORE_PACKAGES = {"errors", "model", "ports"}

# What each file of the root may import from the rest of the root.
ROOT_FILES: Mapping[str, set[str]] = {
    "model": set(),
    "errors": set(),
    "wire": set(),
    "fingerprint": {"model"},
    "redis_address": set(),
    "reloadable": set(),
    "fair_share": set(),
    "network": set(),
    "slices": set(),
    "ownership": set(),
    "whole_files": set(),
    "account": {"errors", "model"},
    "uses": {"model"},
    "waiters": {"account"},
    "requests": {"account", "waiters", "model", "errors"},
    "wait_budget": {"errors"},
    "ports": {"model", "errors", "waiters", "wait_budget", "wire"},
    "admission": {
        *("account", "model", "errors", "waiters", "reloadable", "fair_share", "requests", "ports")
    },
    "singleflight": {"account", "waiters", "errors"},
    "quarantine": {"model", "errors", "ports", "wait_budget"},
    "pins": {"model"},
    "pin_service": {"admission", "errors", "model", "pins", "ports"},
    "compile_work": {"model", "ports", "wait_budget"},
    "fast_first": {"model", "errors"},
    "compiles_behind": {"account", "model", "errors", "ports", "requests", "waiters"},
    "compile_service": CORE | {"quarantine", "compile_work", "compiles_behind", "fast_first"},
    "module_service": CORE | {"pin_service", "quarantine"},
    "tenant": SERVICES | {"uses"},
    "options": CORE,
    "app": CORE | {"options"},
    "run": {"app"},
    "cli": CORE | {"run"},
    "entry": {"cli"},
    "__main__": {"entry"},
    "__init__": set(),
}

# What each room may import: files of the root, then other rooms.
ROOMS: Mapping[str, tuple[set[str], set[str]]] = {
    "cache.value": (CORE, set()),
    "cache.redis": (CORE, {"cache.value"}),
    "cache.embedded": ({"ownership"}, set()),
    "cache.fleet": (CORE, {"cache.value", "cache.redis"}),
    "cache.host": (CORE, {"cache.value"}),
    "cache": (
        CORE,
        {"cache.value", "cache.redis", "cache.embedded", "cache.fleet", "cache.host"},
    ),
    "engines.child": (set(), {"engines.child.isolation"}),
    "engines.child.isolation": (set(), set()),
    "engines.scheduling": (CORE, set()),
    "engines.workers": (
        CORE,
        {"engines.child", "engines.child.isolation", "engines.scheduling"},
    ),
    "engines.verdicts": (CORE, {"engines.child", "engines.workers"}),
    "engines": (
        CORE,
        {"engines.child", "engines.scheduling", "engines.workers", "engines.verdicts"},
    ),
    "engines.install": (
        CORE,
        {"engines", "engines.child.isolation", "engines.workers", "engines.verdicts"},
    ),
    "access.tls": ({"ownership"}, set()),
    "access.quotas": (CORE, set()),
    "access": (CORE, {"config", "config.values"}),
    "rpc.connections": (CORE, set()),
    "rpc.flow": (CORE, set()),
    "rpc.wire": (CORE, {"rpc.flow", "telemetry.metrics"}),
    "rpc.services": (CORE | {"tenant"}, {"rpc.connections", "rpc.wire"}),
    "rpc": (CORE, {"rpc.connections", "rpc.flow", "rpc.wire", "rpc.services"}),
    "telemetry": (set(), set()),
    "telemetry.logs": (set(), set()),
    "telemetry.metrics": ({"errors", "model"}, set()),
    "telemetry.audit": ({"ports"}, set()),
    "telemetry.traces": (CORE, set()),
    "telemetry.admin": ({"network", "model", "errors", "ports"}, set()),
    "telemetry.status_page": ({"model"}, {"telemetry.admin", "telemetry.metrics"}),
    "config.values": ({"redis_address"}, set()),
    "config.sections": (set(), {"config.values"}),
    "config": (set(), {"config.sections", "config.values"}),
    "signing": (CORE, {"config"}),
    "usage": (CORE, {"cache.redis", "cache.value"}),
    "tenants": (
        CORE | SERVICES | {"compiles_behind", "options", "tenant"},
        {"cache", "cache.value", "config", "engines", "rpc.wire", "telemetry.metrics", "usage"},
    ),
    "lifecycle": (
        CORE | {"compiles_behind", "options"},
        {
            "access",
            "access.tls",
            "cache",
            "cache.value",
            "config",
            "config.values",
            "engines",
            "engines.install",
            "engines.workers",
        }
        | {"rpc", "rpc.wire", "signing", "telemetry.admin", "telemetry.audit", "telemetry.logs"}
        | {"telemetry.metrics", "telemetry.status_page", "telemetry.traces", "tenants"},
    ),
    "maintenance": (
        CORE,
        {"cache", "cache.embedded", "cache.host", "cache.redis", "cache.value"},
    ),
    "commands": (
        {"model", "ports", "ownership", "uses"},
        {
            "access",
            "access.tls",
            "config",
            "config.values",
            "engines",
            "engines.install",
            "lifecycle",
        }
        | {"signing"}
        | {"telemetry.audit"},
    ),
    "commands.cache": (
        CORE | {"options"},
        {"cache", "cache.value", "cache.redis", "cache.fleet", "config", "config.values"}
        | {
            "cache.host",
            "commands",
            "maintenance",
            "signing",
            "engines",
            "engines.child",
            "engines.install",
            "engines.workers",
            "telemetry.logs",
        },
    ),
}


def short(name: str) -> str:
    """Return a module's name without the name of the daemon's package."""
    return name.removeprefix("wasmkilnd").removeprefix(".") or "__init__"


def placed(name: str) -> tuple[str, str]:
    """Return a module's room and its own name; a package of the core is a file of the root."""
    room = short(room_of(name, SERVER))
    return ("__init__", room) if room in CORE_PACKAGES else (room, short(name))


@pytest.mark.parametrize("name", modules(SERVER))
def test_the_daemon_imports_one_way(name: str) -> None:
    room, file = placed(name)
    for other in graph(SERVER)[name]:
        other_room, other_file = placed(other)
        if room == "__init__":  # a file of the root
            if other_room == "__init__" and other_file != file:
                assert other_file in ROOT_FILES[file], f"{name} imports {other}"
        elif other_room == "__init__":
            assert other_file in ROOMS[room][0], f"{name} imports {other}"
        elif other_room != room:
            assert other_room in ROOMS[room][1], f"{name} imports {other}"


def test_the_tables_allow_nothing_that_no_file_needs() -> None:
    """The core is the exception: a room may import all of it."""
    needed = set()
    for name in modules(SERVER):
        room, file = placed(name)
        for other in graph(SERVER)[name]:
            other_room, other_file = placed(other)
            importer = file if room == "__init__" else room
            needed.add((importer, other_file if other_room == "__init__" else other_room))
    allowed = {(room, other) for room, (files, rooms) in ROOMS.items() for other in files | rooms}
    allowed |= {(file, other) for file, others in ROOT_FILES.items() for other in others}
    assert [(who, what) for who, what in allowed - needed if what not in CORE] == []


@pytest.mark.parametrize("name", modules(SERVER))
def test_a_package_of_the_core_is_imported_as_a_whole(name: str) -> None:
    for other in graph(SERVER)[name]:
        package = other.rpartition(".")[0]
        if short(package) in CORE_PACKAGES:
            assert room_of(name, SERVER) == package, f"{name} imports {other}"


@pytest.mark.parametrize("name", [name for name in modules(SERVER) if placed(name)[1] in CORE])
def test_the_core_of_the_daemon_knows_no_room(name: str) -> None:
    assert {placed(other)[0] for other in graph(SERVER)[name]} <= {"__init__"}


@pytest.mark.parametrize("package", [SERVER, CLIENT], ids=lambda package: package.name)
def test_no_files_import_each_other_in_a_circle(package: Path) -> None:
    assert list(circles(graph(package))) == []


def test_no_rooms_import_each_other_in_a_circle() -> None:
    assert list(circles({room: frozenset(allowed) for room, (_, allowed) in ROOMS.items()})) == []


def test_a_circle_is_found() -> None:
    edges = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("b"), "d": frozenset("a")}
    assert list(circles(edges)) == [{"b", "c"}]


@pytest.mark.parametrize("name", modules(SERVER))
def test_the_daemon_never_imports_an_engine(name: str) -> None:
    if "engines.child" not in name:
        engines = {
            *("wasmer", "wasmer_compiler_cranelift", "wasmer_compiler_singlepass", "wasmtime"),
        }
        imported = imported_modules(modules(SERVER)[name])
        assert not engines & {other.split(".")[0] for other in imported}


@pytest.mark.parametrize(
    "path", sorted((SERVER / "engines" / "child").rglob("*.py")), ids=lambda path: path.name
)
def test_a_worker_imports_the_standard_library_and_its_engine_only(path: Path) -> None:
    import sys

    own = {
        *("wasmkilnd", "wasmtime"),
        *("wasmer", "wasmer_compiler_cranelift", "wasmer_compiler_singlepass"),
    }
    for name in imported_modules(path):
        first = name.split(".")[0]
        assert first in sys.stdlib_module_names | own, name
        if first == "wasmkilnd":
            assert name.startswith("wasmkilnd.engines.child"), name
        if first in own - {"wasmkilnd"}:
            assert path.name == f"{first.split('_')[0]}_engine.py", name


@pytest.mark.parametrize(
    "path", sorted(CLIENT.rglob("*.py")), ids=lambda path: str(path.relative_to(CLIENT))
)
def test_the_client_imports_nothing_of_the_daemon(path: Path) -> None:
    assert not [name for name in imported_modules(path) if name.split(".")[0] == "wasmkilnd"]


def test_no_assert_stands_in_for_validation() -> None:
    """``python -O`` removes asserts."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for root in (SERVER, CLIENT)
        for path in root.rglob("*.py")
        if "v1" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []
