"""The container image: built of deploy/Dockerfile, run as docs/how-to/deploy.md says, and in pods.

The pods are those of the chart, with the volumes, the user and the variables of its manifests.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkiln import Client
from wasmkiln.v1 import types_pb2 as types

from tests.authority import Authority
from tests.e2e.processes import eventually
from tests.e2e.programs import installed_engines
from tests.e2e.wasm import adder, digest
from tests.operators import image
from tests.operators.helm import render, render_file
from tests.operators.image import podman, running
from tests.operators.pod import ASK, Files, Pod, signing_key
from tests.operators.toolchains import TOOLS

# The first build installs a Debian, all packages and two engines.
pytestmark = pytest.mark.timeout(1800)
PREFIX = "import sys; print(sys.base_prefix, '%d.%d' % sys.version_info[:2])"
STATE, HOST_STORE = "/var/lib/wasmkiln/state", "/var/cache/wasmkiln"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Build the image; what has not changed since the last time comes from the store."""
    TOOLS.demand("podman")
    if os.geteuid() != 0:
        TOOLS.give_up("cannot build the image: run this as root")
    image.make_bases(python310())
    image.build()


def python310() -> Path:
    """Return the folder of a CPython 3.10 that can be copied."""
    [wasmer] = [engine for engine in installed_engines() if engine.name == "wasmer"]
    asked = [str(wasmer.interpreter), "-c", PREFIX]
    folder, version = subprocess.check_output(asked, text=True).split()
    if version != "3.10":
        TOOLS.give_up("cannot build the image: there is no CPython 3.10 for wasmer")
    if folder == "/usr":
        TOOLS.give_up("cannot build the image: CPython 3.10 is a part of this system")
    return Path(folder)


@pytest.fixture
def volume() -> Iterator[str]:
    """A volume of podman's own, which begins with what the image has there."""
    name = f"wasmkiln-{os.getpid()}"
    podman("volume", "create", name)
    yield name
    podman("volume", "rm", "--force", name)


def at_other_ports() -> dict[str, str]:
    """Return settings for other ports than the image's, free ones."""
    with socket.create_server(("127.0.0.1", 0)) as grpc, socket.create_server(("", 0)) as http:
        address = f"127.0.0.1:{grpc.getsockname()[1]}"
        return {
            "listen": address,
            "address": address,
            "admin_listen": f"127.0.0.1:{http.getsockname()[1]}",
            "allow_remote": "false",
        }


@contextmanager
def served(name: str, flags: Sequence[str], settings: Mapping[str, str]) -> Iterator[None]:
    """Run the image in this machine's network; return once its daemon is ready."""

    def has_begun() -> bool:
        state = podman("inspect", name, "--format", "{{.State.Running}}")
        assert state == "true", image.log_of(name)
        return '"event": "ready"' in image.log_of(name)

    environ = [f"--env=WASMKILN_{key.upper()}={value}" for key, value in settings.items()]
    network = ("--network", "host", "--tmpfs", "/tmp")
    with running(name, *network, *flags, *environ, image.IMAGE):
        eventually(has_begun, f"{name} is ready", timeout_s=120)
        yield


def test_the_user_is_a_number_and_no_shell_starts_anything() -> None:
    config = image.config()["Config"]
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["wasmkilnd"], ["serve"])
    health = image.config()["Healthcheck"]["Test"]
    assert health == ["CMD", "wasmkiln", "--timeout", "5", "health"]
    assert set(config["Volumes"]) == {STATE, HOST_STORE}
    assert config["StopSignal"] in ("SIGTERM", "15")


def test_it_serves_from_a_root_that_nothing_can_write_to_at_any_port(
    volume: str,
) -> None:
    flags = ("--volume", f"{volume}:{STATE}")
    wasm, settings = adder(1), at_other_ports()
    with served("kiln-first", flags, settings), Client(settings["address"]) as client:
        engines = {each.engine.id: each for each in client.capabilities().engines}
        assert {each.split("-")[0] for each in engines} == {"wasmer", "wasmtime"}
        first = [client.compile(wasm, engine=engine) for engine in engines]
        # The health check of the image finds the daemon at its port.
        podman("healthcheck", "run", "kiln-first")
        assert podman("exec", "kiln-first", "id", "-u") == "10001"
        podman("stop", "--time", "90", "kiln-first")
        ended = podman("inspect", "kiln-first", "--format", "{{.State.ExitCode}}")
        assert ended == "0"
    # Another container on the same volume has the same keys, and what the first one made.
    settings = at_other_ports()
    with served("kiln-second", flags, settings), Client(settings["address"]) as client:
        again = [
            client.compile(each.header.module_sha256, engine=each.header.engine.id)
            for each in first
        ]
        assert [each.bytes for each in again] == [each.bytes for each in first]
        assert types.ORIGIN_COMPILED not in {each.header.origin for each in again}


def test_another_user_has_its_own_state_and_the_engines_of_the_image(
    tmp_path: Path,
) -> None:
    # As Kubernetes makes a volume for a group, and the page says what goes into it.
    tmp_path.chmod(0o2775)
    os.chown(tmp_path, 0, 2000)
    for parent in tmp_path.parents[:2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    state = tmp_path / "wasmkilnd"
    state.mkdir(mode=0o700)
    (state / "engines").symlink_to("/var/lib/wasmkiln/engines")
    os.chown(state, 12345, 2000)
    flags = ("--user", "12345:2000", "--volume", f"{tmp_path}:/state")
    own = {**at_other_ports(), "state_dir": "/state/wasmkilnd", "host_store_dir": "none"}
    with served("kiln-third", flags, own), Client(own["address"]) as client:
        assert client.compile(adder(2), engine="wasmtime").bytes
        assert (state / "keys").stat().st_uid == 12345


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Files]:
    """What the values of ci/ name."""
    folder = tmp_path_factory.mktemp("secrets")
    authority = Authority(folder)
    pair = authority.server("kiln")
    return {
        "kiln-key": {"key": signing_key()},
        "kiln-tokens": {"tokens.json": b'{"version": 1, "tokens": []}\n'},
        "kiln-trusted": {},
        "kiln-tls": {"tls.crt": pair.cert, "tls.key": pair.key},
        "kiln-clients": {"ca.crt": authority.ca_file.read_bytes()},
        "redis": {"password": b"secret\n"},
    }


def test_a_pod_serves_with_a_claim_of_its_group(
    tmp_path: Path, secrets: Mapping[str, Files]
) -> None:
    """The default values and HTTP, and what the daemon leaves for its next start."""
    pod = Pod(render({"http": {"enabled": True}}), tmp_path / "pod", secrets)
    with pod.running():
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        compile_in(pod)
        module = f"http://127.0.0.1:8080/v1/modules/{digest(adder(3))}"
        assert pod.failure_of("python3", "-c", ASK, module) == ""
        # Its probes have no token.
        assert pod.failure_of("wasmkilnd", "token", "add", "ci", "--role", "read") == ""
        eventually(lambda: pod.failure_of("wasmkiln", "capabilities"), "it asks for no token")
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
    state = pod.volume("state") / "wasmkilnd"
    assert state.stat().st_uid == 10001
    assert state.stat().st_mode & 0o777 == 0o700
    assert str((state / "engines").readlink()) == "/var/lib/wasmkiln/engines"
    keys = {each.name for each in (state / "keys").iterdir()}
    # A new pod with the same claim, as after an upgrade of the chart.
    with pod.running():
        assert {each.name for each in (state / "keys").iterdir()} == keys


@pytest.mark.parametrize("values", ["node", "fleet", "tls"])
def test_a_pod_serves_with_the_values_of_ci(
    tmp_path: Path, secrets: Mapping[str, Files], values: str
) -> None:
    """An emptyDir and a folder of the node; a fleet's secrets, before its Redis starts; TLS."""
    pod = Pod(render_file(values), tmp_path / "pod", secrets)
    with pod.running():
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        if values == "tls":  # probes need no identity, callers do
            assert pod.failure_of("wasmkiln", "stats")
        else:
            compile_in(pod)
    assert values != "node" or [*pod.volume("host-store").rglob("*")]


def compile_in(pod: Pod) -> None:
    (pod.volume("tmp") / "m.wasm").write_bytes(adder(3))
    assert pod.failure_of("wasmkiln", "compile", "/tmp/m.wasm", "-o", "/tmp/m.cwasm") == ""
    assert (pod.volume("tmp") / "m.cwasm").stat().st_uid == 10001
