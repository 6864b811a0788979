"""protos/ is what each language can generate from, and the google.rpc in it is everybody's."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2, status_pb2

from scripts.release import contract
from tests.e2e.grpcurl import Grpcurl

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    *("csharp_namespace", "go_package", "java_multiple_files", "java_outer_classname"),
    *("java_package", "objc_class_prefix", "php_namespace", "ruby_package"),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The descriptors of all of protos/, by file."""
    image = tmp_path_factory.mktemp("image") / "all.binpb"
    protos = sorted(str(path) for path in (ROOT / "protos").rglob("*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}/protos", f"-o{image}", *protos],
        check=True,
    )
    read = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    return {file.name: file for file in read.file}


def test_each_file_says_what_its_code_is_called_in_each_language(files: dict[str, Any]) -> None:
    ours = [file for name, file in files.items() if name.startswith("wasmkiln/")]
    assert ours
    unset = {(f.name, option) for f in ours for option in OPTIONS if not f.options.HasField(option)}
    assert unset == set()


def test_our_google_rpc_is_a_part_of_googles(files: dict[str, Any]) -> None:
    for module in (status_pb2, error_details_pb2):
        theirs = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(theirs)
        ours = files[theirs.name]
        assert ours.package == theirs.package
        for option in ("go_package", "java_package", "java_multiple_files", "java_outer_classname"):
            assert getattr(ours.options, option) == getattr(theirs.options, option)
        known = dict(pair for message in theirs.message_type for pair in walk(message))
        for message in ours.message_type:
            for name, fields in walk(message):
                assert fields.items() <= known[name].items(), name


def walk(message: Any, above: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each message and what its fields are on the wire."""
    name = f"{above}.{message.name}"
    yield name, {f.name: (f.number, f.type, f.label, f.type_name) for f in message.field}
    for inner in message.nested_type:
        yield from walk(inner, name)


def test_a_release_has_the_contract_as_an_archive_and_as_descriptors(tmp_path: Path) -> None:
    written = contract("1.2.3")
    assert written == contract("1.2.3")
    packed = "wasmkiln-protos-1.2.3.tar.gz"
    with tarfile.open(fileobj=io.BytesIO(written[packed])) as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = tmp_path / packed.removesuffix(".tar.gz")
    for source in (ROOT / "protos").rglob("*.proto"):
        assert (unpacked / source.relative_to(ROOT / "protos")).read_bytes() == source.read_bytes()
    image = unpacked / "wasmkiln.binpb"
    assert image.read_bytes() == written["wasmkiln.binpb"]
    read = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    known = {file.name for file in read.file}
    assert {imported for file in read.file for imported in file.dependency} <= known
    # grpcurl asks no daemon for what the descriptors say, comments included.
    described = Grpcurl("", flags=["-protoset", str(image)])(
        "describe", "wasmkiln.v1.ModuleService.Compile"
    )
    assert described.returncode == 0, described.stderr
    assert "Returns the artifact of a module for one engine" in described.stdout
