"""Imports go one way, and no engine is ever imported by the daemon."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "server" / "wasmkilnd"
CLIENT = ROOT / "client" / "wasmkiln"

CORE = {
    *("model", "errors", "ports", "wire", "fingerprint", "admission"),
    *("demand", "singleflight", "seal", "redis_address", "in_force", "ledger", "network"),
    *("slices", "wait_budget", "ownership"),
}
# What each part may import of the others; a part may always import itself.
MAY_IMPORT = {
    "model": set(),
    "errors": set(),
    "wire": set(),
    "fingerprint": {"model"},
    "redis_address": set(),
    "demand": set(),
    "order": {"demand", "model"},
    "wait_budget": {"errors"},
    "ports": {"model", "errors", "demand", "wait_budget", "wire"},
    "admission": {"model", "errors", "demand", "in_force", "ledger", "order", "ports"},
    "singleflight": {"demand", "errors"},
    "seal": {"model"},
    "in_force": set(),
    "ledger": set(),
    "network": set(),
    "descriptors": set(),
    "slices": set(),
    "ownership": set(),
    "quarantine": {"model", "errors", "ports", "wait_budget"},
    "compile_service": CORE | {"order", "quarantine"},
    "module_service": CORE | {"order", "quarantine"},
    "cache": CORE,
    "engines": CORE,
    "telemetry": CORE,
    "config": {"redis_address"},
    "keys": {"ownership"},
    "keys_command": {"keys", "config"},
    "rpc": CORE | {"order", "compile_service", "module_service", "quarantine", "telemetry"},
    "shutdown": set(),
    "readiness": CORE | {"engines"},
    "signing": CORE | {"config", "keys"},
    "gauges": CORE | {"engines", "rpc", "telemetry"},
    "options": CORE | {"cache", "config", "engines"},
    "reload": CORE | {"cache", "config", "keys", "options", "signing", "telemetry"},
    "app": CORE
    | {"compile_service", "module_service", "quarantine", "cache", "engines", "telemetry"}
    | {"config", "rpc"}
    | {
        "banner",
        "descriptors",
        "gauges",
        "keys",
        "malloc_trim",
        "options",
        "shutdown",
        "readiness",
        "signing",
        "reload",
    },
    "banner": CORE | {"engines", "config"},
    "service_manager": set(),
    "allocator": set(),
    "malloc_trim": set(),
    "run": {"allocator", "app", "config", "shutdown", "service_manager", "telemetry"},
    "cache_command": CORE | {"cache", "engines", "config", "keys", "options", "telemetry"},
    "cli": CORE | {"app", "run", "engines", "config", "keys", "keys_command", "cache_command"},
    "__main__": {"cli"},
    "__init__": set(),
}


def imported_modules(path: Path) -> set[str]:
    """Answer the full names of all that a file imports, relative ones resolved."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = path.relative_to(
                    SERVER.parent if SERVER in path.parents else CLIENT.parent
                )
                base = ".".join(package.parts[: len(package.parts) - node.level])
                names |= {f"{base}.{node.module or alias.name}" for alias in node.names}
            else:
                names.add(node.module or "")
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    """Answer the part of the daemon that a file belongs to."""
    first = path.relative_to(SERVER).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize(
    "path", sorted(SERVER.rglob("*.py")), ids=lambda path: str(path.relative_to(SERVER))
)
def test_the_daemon_imports_one_way(path: Path) -> None:
    part = part_of(path)
    for name in imported_modules(path):
        words = name.split(".")
        assert words[0] not in {"wasmer", "wasmtime"} or "child" in path.parts, name
        if (
            words[0] == "wasmkilnd"
            and len(words) > 1
            and (SERVER / words[1]).exists() | (SERVER / f"{words[1]}.py").exists()
        ):
            assert words[1] in MAY_IMPORT[part] | {part}, f"{part} imports {name}"


@pytest.mark.parametrize(
    "path", sorted((SERVER / "engines" / "child").rglob("*.py")), ids=lambda path: path.name
)
def test_a_worker_imports_the_standard_library_and_its_engine_only(path: Path) -> None:
    import sys

    own = {"wasmkilnd", "wasmer", "wasmer_compiler_cranelift", "wasmtime"}
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
    """An assert vanishes under ``python -O``; the one that there is only helps the type checker."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for root in (SERVER, CLIENT)
        for path in root.rglob("*.py")
        if "v1" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []
