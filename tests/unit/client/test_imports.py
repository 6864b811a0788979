"""Importing the client needs grpcio, protobuf and the rich-error protos only."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import wasmkiln
from wasmkiln import errors

# Hides every installed package but those that the client may need.
PROBE = """
import sys
from pathlib import Path

ALLOWED = {"grpc", "google", "wasmkiln", "typing_extensions", "cython_runtime"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ALLOWED or top in sys.stdlib_module_names or top.startswith("_"):
            return None
        raise ModuleNotFoundError(f"hidden: {name}", name=name)

sys.meta_path.insert(0, Hide())
import wasmkiln
try:
    import click
except ModuleNotFoundError:
    print(wasmkiln.Client().address)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def test_importing_needs_no_extra() -> None:
    done = run(PROBE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(":50051\n")


def test_importing_leaves_the_command_and_engines_alone() -> None:
    extras = {"click", "rich", "wasmtime", "securesystemslib", "cryptography", "grpc", "asyncio"}
    # Of the standard library and the client's needs, what would take a third of the import.
    extras |= {"importlib.metadata", "google.protobuf.json_format", "fractions", "zstandard"}
    done = run(f"import sys, wasmkiln; wasmkiln.Client(); print({extras} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stdout
    done = run("import wasmkiln; print(wasmkiln.aio.AsyncClient is wasmkiln.AsyncClient)")
    assert done.stdout == "True\n", done.stderr


def test_the_package_shows_its_public_names_and_no_others() -> None:
    # A fresh process: no name has been used yet.
    done = run(
        "import wasmkiln; shown = dir(wasmkiln)\n"
        "assert shown == wasmkiln.__all__ == dir(wasmkiln), shown\n"
        "from wasmkiln import *\n"
        "missing = [name for name in shown if name not in globals()]\n"
        "assert not missing, missing\n"
        "print(*shown)"
    )
    assert done.returncode == 0, done.stderr
    shown = set(done.stdout.split())
    raised = {name for name, what in vars(errors).items() if inspect.isclass(what)}
    declared = re.findall(r"^    from .* as (\w+)$", inspect.getsource(wasmkiln), re.MULTILINE)
    assert shown == {*declared, "__version__", *(name for name in raised if name[0] != "_")}


def test_the_help_of_a_command_needs_no_client() -> None:
    dear = {"grpc", "google.protobuf", "asyncio", "logging", "importlib.metadata", "urllib.request"}
    done = run(
        "import sys\nfrom wasmkiln.cli.app import app\n"
        "app(['compile', '--help'], standalone_mode=False)\n"
        f"print(sorted({dear} & set(sys.modules)))"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout


def test_the_command_without_its_packages_is_one_sentence() -> None:
    done = run("import sys; sys.modules['click'] = None\nfrom wasmkiln.cli import main\nmain()")
    assert done.returncode == 2
    assert done.stderr == "error: the wasmkiln command needs click: pip install 'wasmkiln[cli]'\n"


def test_every_name_is_exported() -> None:
    import wasmkiln
    from wasmkiln import errors

    assert wasmkiln.__version__ == version("wasmkiln")

    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    public = [kind for kind in kinds if not kind.__name__.startswith("_")]
    assert len(public) > 35
    assert all(getattr(wasmkiln, kind.__name__) is kind for kind in public)
    assert {kind for kind in public if issubclass(kind, errors.WasmkilnError)} >= set(
        errors.BY_REASON.values()
    )


def test_the_page_names_every_method_argument_and_error() -> None:
    from wasmkiln import AsyncClient, Client, errors

    page = (Path(__file__).parents[3] / "docs" / "how-to" / "python.md").read_text()
    methods = [name for name in dir(Client) if not name.startswith("_") and name != "address"]
    assert methods == [name for name in dir(AsyncClient) if name in methods]
    named = {
        word
        for words in re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)
        for word in re.findall(r"`(\w+)", words)
    }
    assert set(methods) | set(inspect.signature(Client).parameters) <= named
    kinds = [kind.__name__ for kind in errors.BY_REASON.values()]
    assert [name for name in kinds if f"`{name}`" not in page] == []
