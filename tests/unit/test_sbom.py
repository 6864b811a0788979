"""The wheel carries a bill of materials that says what its lock file says."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.test_locks import locked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)),
        ],
        check=True,
    )
    [wheel] = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def text(built: Path) -> str:
    """The bill in it."""
    with zipfile.ZipFile(built) as wheel:
        [name] = [name for name in wheel.namelist() if "/sboms/" in name]
        assert name == f"wasmkiln-{version('wasmkiln')}.dist-info/sboms/wasmkiln.cdx.json"
        return wheel.read(name).decode()


@pytest.fixture(scope="module")
def bill(text: str) -> Any:
    """The same, parsed."""
    return json.loads(text)


def test_it_is_valid_cyclonedx(text: str) -> None:
    # Here: each process that collects the tests would take two seconds for it.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_it_names_the_wheel_that_it_lies_in(bill: Any, built: Path) -> None:
    component = bill["metadata"]["component"]
    assert built.name.startswith(f"{component['name']}-{component['version']}-")
    assert component["purl"] == f"pkg:pypi/wasmkiln@{version('wasmkiln')}"


def test_it_names_what_is_locked_and_nothing_that_only_builds(bill: Any) -> None:
    parts = {part["name"]: part["version"] for part in bill["components"]}
    left_out = locked("server").keys() - parts.keys()
    assert parts.items() <= locked("server").items()
    assert "hatchling" in left_out
    assert not {"grpcio", "redis", "cryptography", "yarl", "uv"} & left_out


def test_the_thin_client_needs_little(bill: Any) -> None:
    required = {part["name"] for part in bill["components"] if part["scope"] == "required"}
    assert required == {"grpcio", "protobuf", "googleapis-common-protos", "typing-extensions"}


def test_it_says_who_asks_for_whom(bill: Any) -> None:
    named = {part["bom-ref"] for part in bill["components"]}
    ours = bill["metadata"]["component"]["bom-ref"]
    edges = {each["ref"]: set(each["dependsOn"]) for each in bill["dependencies"]}
    assert edges.keys() == {ours, *named}
    assert set[str]().union(*edges.values()) == named
    assert any(ref.startswith("pkg:pypi/grpcio@") for ref in edges[ours])


def test_the_pins_of_the_engines_are_in_the_wheel(built: Path) -> None:
    pins = ROOT / "server" / "wasmkilnd" / "engines" / "pins"
    with zipfile.ZipFile(built) as wheel:
        for file in pins.iterdir():
            inside = f"wasmkilnd/engines/pins/{file.name}"
            assert wheel.read(inside) == file.read_bytes()
