"""Rust's client as cargo sees it, and the hosts that its pages show."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from subprocess import PIPE

import grpc
import pytest
from wasmkiln.v1.module_service_pb2 import QueryUploadRequest
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub

from scripts.licences import PERMISSIVE
from scripts.release import build_packages, clients
from scripts.version import ROOT, version_of
from tests.e2e import wasm
from tests.e2e.bearers import add_token
from tests.e2e.daemon import ONE_ENGINE, Daemon, state_with
from tests.e2e.over_tls import TlsSite
from tests.e2e.processes import eventually
from tests.faults.proxy import Line, Proxy
from tests.polyglot import builds
from tests.polyglot.builds import Asks
from tests.polyglot.conftest import Built
from tests.polyglot.kiln import FULL_ENGINE, Kiln
from tests.polyglot.rusttools import Rust

pytestmark = pytest.mark.timeout(builds.BUILD_TIMEOUT_S)
SIZE = 16_000_000
CARGOS_OWN = ("/Cargo.lock", "/Cargo.toml.orig", "/.cargo_vcs_info.json")
NO_WARNINGS = ("--", "--deny", "warnings")


@pytest.fixture(scope="module")
def rust(built: Built) -> Rust:
    return Rust(built("rust"))


def test_its_source_is_formatted_and_clippy_has_nothing_to_say(rust: Rust) -> None:
    rust("fmt", "--all", "--check")
    rust("clippy", "--quiet", "--workspace", "--all-targets", "--all-features", *NO_WARNINGS)
    rust("clippy", "--quiet", "--package", "wasmkiln", "--no-default-features", *NO_WARNINGS)


def test_its_documentation_has_no_warning_and_its_examples_compile(rust: Rust) -> None:
    environ = {"RUSTDOCFLAGS": "--deny warnings"}
    rust("doc", "--package", "wasmkiln", "--all-features", "--no-deps", environ=environ)
    rust("test", "--quiet", "--package", "wasmkiln", "--all-features")


def test_a_package_of_it_builds(rust: Rust, tmp_path: Path) -> None:
    rust("package", "--package", "wasmkiln", "--all-features", "--allow-dirty")
    [package] = (rust.folder / "target" / "package").glob("wasmkiln-*.crate")
    assert package.stat().st_size < 500_000
    # What a release has under the same name holds all of it but what cargo writes itself.
    with tarfile.open(package) as tar:
        written = {name for name in tar.getnames() if not name.endswith(CARGOS_OWN)}
    version = version_of(ROOT)
    _, sources = build_packages(tmp_path, version)
    with tarfile.open(fileobj=io.BytesIO(clients(version, sources)[package.name])) as tar:
        assert written <= set(tar.getnames())


def test_each_crate_that_it_needs_has_a_permissive_licence(rust: Rust) -> None:
    """Of the choices that a crate gives, one is; `scripts/licences.py` has the list."""
    found = json.loads(rust("metadata", "--format-version", "1"))["packages"]
    stated = {each["name"]: each["license"] for each in found if each["license"]}
    assert len(stated) > 100
    accepted = PERMISSIVE | {"Unicode-DFS-2016"}
    for name, licence in stated.items():
        for part in licence.replace("/", " OR ").split(" AND "):
            choices = {each.strip(" ()") for each in part.split(" OR ")}
            assert choices & accepted, f"{name}: {licence}"


def test_the_host_of_the_page(rust: Rust, kiln: Kiln, tmp_path: Path) -> None:
    with kiln.daemon.client() as client:
        made = client.compile(kiln.module, engine=FULL_ENGINE)
        made.save(tmp_path / "m.cwasm", header=False)
        done = rust.run(tmp_path, "--bin", "page")
        assert (done.stdout, done.stderr) == ("42\n", "")
        other = client.compile(kiln.module, engine="wasmtime-49.0.0")
        other.save(tmp_path / "m.cwasm", header=False)
    done = rust.run(tmp_path, "--bin", "page")
    assert done.returncode == 1
    assert "incompatible version '49'" in done.stderr


def test_a_host_runs_code_of_a_daemon_or_its_own(rust: Rust, kiln: Kiln, tmp_path: Path) -> None:
    """Verified bytes while the file is young, the file later, and its own code without a daemon."""
    example: builds.Words = ["--package", "wasmkiln", "--example", "host", "--"]
    words: builds.Words = [kiln.key_file, kiln.fresh_module(), "fib", "20"]

    def ran(address: str) -> str:
        done = rust.run(tmp_path, *example, address, *words)
        found = re.fullmatch(r"rust host ran fib\(20\) = 6765, (.+), loaded in .+s\n", done.stdout)
        assert found, done.stdout + done.stderr
        return found[1]

    assert ran(kiln.address) in ("ORIGIN_COMPILED", "mapped from the host store")
    for _ in range(20):
        if (origin := ran(kiln.address)) == "mapped from the host store":
            break
        assert origin in ("ORIGIN_MEMORY", "ORIGIN_HOST_STORE")
    assert origin == "mapped from the host store"
    assert ran("127.0.0.1:1") == "compiled here"


def test_what_a_daemon_saves(rust: Rust, kiln: Kiln, tmp_path: Path) -> None:
    source = rust.workspace / "wasmkiln" / "examples" / "saves.rs"
    text = source.read_text()
    assert len(text.splitlines()) <= 25
    source.write_text(text.replace("127.0.0.1:50051", kiln.address))
    shutil.copy(kiln.key_file, tmp_path / "key.pem")
    example: builds.Words = ["--package", "wasmkiln", "--example", "saves", "--"]
    done = rust.run(tmp_path, *example, kiln.module)
    begins = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert begins == ["first call", "second call", "without a daemon"], done.stderr


@pytest.fixture(scope="module")
def asks(built: Built) -> Asks:
    """The program of Rust alone."""
    return builds.rust_program(built("rust"))


def test_a_client_certificate(asks: Asks, kiln: Kiln, tmp_path: Path) -> None:
    site = TlsSite(tmp_path / "tls")
    state = state_with(tmp_path / "state", *ONE_ENGINE)
    with Daemon(state, site.flags()) as daemon:
        address = f"localhost:{daemon.address.rpartition(':')[2]}"
        words: builds.Words = [address, kiln.module, "--ca", site.authority.ca_file]
        pair = site.client
        flags: builds.Words = ["--certificate", pair.cert_file, "--certificate-key", pair.key_file]
        assert asks.once(*words, *flags).what == "compiled"
        assert asks.once(*words, "--timeout-ms", "2500").what == "CONNECTION_FAILED"


def test_namespaces(asks: Asks, kiln: Kiln, tmp_path: Path) -> None:
    """Each token's namespace has modules of its own."""
    state = state_with(tmp_path / "state", *ONE_ENGINE)
    tokens = {name: tmp_path / f"{name}.token" for name in ("one", "other")}
    for name, file in tokens.items():
        file.touch(0o600)
        file.write_text(add_token(state, name, "compile", namespace=name))
    digest = hashlib.sha256(kiln.module.read_bytes()).hexdigest()
    with Daemon(state, ["--redis-url", "none", "--workers", "1"]) as daemon:
        words: builds.Words = [daemon.address, kiln.module, "--token-file"]
        assert asks.once(*words, tokens["one"]).what == "compiled"
        by_digest = ["--digest", digest]
        assert asks.once(*words, tokens["one"], *by_digest).what == "compiled"
        assert asks.once(*words, tokens["other"], *by_digest).what == "MODULE_NOT_LOADED"


def test_ten_cuts_of_an_upload_and_of_a_download(asks: Asks, kiln: Kiln, tmp_path: Path) -> None:
    module, out = tmp_path / "module.wasm", tmp_path / "artifact"
    module.write_bytes(content := wasm.with_data(SIZE, 39))
    query = QueryUploadRequest(sha256=hashlib.sha256(content).hexdigest())
    flags: builds.Words = ["--key", kiln.key_file, "--engine", FULL_ENGINE, "--out", out]
    with (
        Proxy(int(kiln.address.rpartition(":")[2])) as proxy,
        grpc.insecure_channel(kiln.address) as channel,
    ):
        proxy.set(Line(stall_after_sent_bytes=SIZE // 12))
        query_upload = ModuleServiceStub(channel).QueryUpload
        argv = list(map(str, [*asks.argv, f"127.0.0.1:{proxy.port}", module, *flags]))
        with subprocess.Popen(argv, stdout=PIPE, text=True) as running:
            held = 0
            for _ in range(10):

                def has_more(before: int = held) -> bool:
                    return query_upload(query).held_bytes > before or running.poll() is not None

                eventually(has_more, "too little arrives")
                held = query_upload(query).held_bytes
                proxy.cut()
            assert held < SIZE
            proxy.set(Line(cut_after_bytes=SIZE // 12))
            output, _ = running.communicate(timeout=120)
        [said] = builds.said_in(output)
    assert said.what == "compiled", said
    assert proxy.cuts >= 10
    with kiln.daemon.client() as client:
        assert out.read_bytes() == client.compile(module, engine=FULL_ENGINE).bytes
