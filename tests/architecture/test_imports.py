"""What import-linter cannot say. Its contracts are in pyproject.toml; `make check` holds them."""

from __future__ import annotations

import sys

from tests.architecture.imports import SERVER, imported_modules, shown, written_files

CHILD = "wasmkilnd.engines.child"
# import-linter says which file may import which engine.
ENGINES = {"wasmtime", "wasmer", "wasmer_compiler_cranelift", "wasmer_compiler_singlepass"}


def test_a_worker_imports_the_standard_library_and_its_engine_only() -> None:
    found = [
        f"{shown(path)}: {name}"
        for path in written_files(SERVER / "engines" / "child")
        for name in imported_modules(path)
        if not f"{name}.".startswith(f"{CHILD}.")
        and name.split(".")[0] not in ENGINES | sys.stdlib_module_names
    ]
    assert found == []
