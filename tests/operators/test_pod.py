"""The pods of the chart run: with the volumes, the user and the variables of the manifests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.operators.helm import render, render_file
from tests.operators.pod import ENGINE, Files, Pod, lacks, signing_key

pytestmark = pytest.mark.timeout(900)
EMPTY = b"\0asm\x01\0\0\0"


@pytest.fixture(scope="module", autouse=True)
def can_run() -> None:
    """Skip where no pod can be run, or fail where everything must be there."""
    if why := lacks():
        (pytest.fail if os.environ.get("OPERATORS") == "all" else pytest.skip)(why)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Files]:
    """What the values of ci/ name."""
    folder = tmp_path_factory.mktemp("secrets")
    authority = Authority(folder)
    pair = authority.server("kiln")
    return {
        "kiln-key": {"key": signing_key()},
        "kiln-trusted": {},
        "kiln-tls": {"tls.crt": pair.cert, "tls.key": pair.key},
        "kiln-clients": {"ca.crt": authority.ca_file.read_bytes()},
        "redis": {"password": b"secret\n"},
    }


def test_a_daemon_serves_with_a_claim_of_its_group(
    tmp_path: Path, secrets: Mapping[str, Files]
) -> None:
    """The default values, and what the daemon leaves for its next start."""
    pod = Pod(render(), tmp_path / "pod", secrets)
    pod.prepare()
    asked = pod.run("config")
    assert asked.returncode == 0, asked.stderr
    with pod:
        pod.wait_until_started()
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        made = pod.exec("wasmkiln", "engines")
        assert ENGINE in made.stdout, made.stderr
        _compile(pod)
        assert pod.stop() == 0, pod.log
    state = pod.volume("state") / "wasmkilnd"
    assert state.stat().st_uid == 10001
    assert state.stat().st_mode & 0o777 == 0o700
    assert str((state / "engines").readlink()) == "/var/lib/wasmkiln/engines"
    keys = {each.name for each in (state / "keys").iterdir()}

    # A new pod with the same claim, as after an upgrade of the chart.
    pod.prepare()
    with pod:
        pod.wait_until_started()
        assert pod.stop() == 0, pod.log
    assert {each.name for each in (state / "keys").iterdir()} == keys


def test_a_daemon_serves_from_an_empty_directory_and_a_host_path(
    tmp_path: Path, secrets: Mapping[str, Files]
) -> None:
    """An emptyDir is open to everybody in the pod; the host store is a folder of the node."""
    pod = Pod(render_file("node"), tmp_path / "pod", secrets)
    pod.prepare()
    with pod:
        pod.wait_until_started()
        _compile(pod)
        assert [*pod.volume("host-store").rglob("*")]
        assert pod.stop() == 0, pod.log


def test_a_daemon_serves_with_the_secrets_of_a_fleet(
    tmp_path: Path, secrets: Mapping[str, Files]
) -> None:
    """A shared key, a password and trusted keys; it starts before its Redis does."""
    pod = Pod(render_file("fleet"), tmp_path / "pod", secrets)
    pod.prepare()
    with pod:
        pod.wait_until_started()
        assert pod.probe("readinessProbe")
        _compile(pod)
        assert pod.stop() == 0, pod.log


def test_a_daemon_serves_with_tls(tmp_path: Path, secrets: Mapping[str, Files]) -> None:
    """Keys are readable by the group, as Secrets are; probes need no identity, callers do."""
    pod = Pod(render_file("tls"), tmp_path / "pod", secrets)
    pod.prepare()
    with pod:
        pod.wait_until_started()
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        assert pod.exec("wasmkiln", "stats").returncode != 0
        assert pod.stop() == 0, pod.log


def _compile(pod: Pod) -> None:
    words = ("compile", "/tmp/m.wasm", "-o", "/tmp/m.cwasm")
    (pod.volume("tmp") / "m.wasm").write_bytes(EMPTY)
    done = pod.exec("wasmkiln", *words)
    assert done.returncode == 0, f"{done.stderr}{pod.log}"
    assert (pod.volume("tmp") / "m.cwasm").stat().st_uid == 10001
