"""Debian's docker-registry, started by tests, and images pushed to it with oras."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import oras.container
import oras.provider
import pytest

from tests.oci import INDEX, Image, descriptor
from tests.servers.debian import DebianUnavailable, docker_registry_binary

USER, PASSWORD = "builder", "of-the-tests"
# The password, by bcrypt.
_HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuu8m01/OKKeqe.KVCwALriSagTRDKwHHe\n"


@dataclass
class Registry:
    """A running registry."""

    host: str
    log: Path
    folder: Path
    password: bool = False

    def push(self, name: str, image: Image) -> str:
        """Push an image as REPOSITORY:TAG; return its reference."""
        kind = "basic" if self.password else "token"
        client = oras.provider.Registry(self.host, insecure=True, auth_backend=kind)
        client.auth.set_basic_auth(USER, PASSWORD)
        repository, _, tag = name.partition(":")
        container = oras.container.Container(name, registry=self.host)
        for number, content in enumerate(image.all_blobs()):
            file = self.folder / f"blob-{number}"
            file.write_bytes(content)
            pushed = client.upload_blob(str(file), container, descriptor(content, "any"))
            assert pushed.status_code in (200, 201), pushed.text
        for one in image.all_manifests():
            at = tag if one is image else descriptor(one.content, "any")["digest"]
            # Not upload_manifest: it encodes the JSON again, and knows no index.
            pushed = client.do_request(
                f"http://{self.host}/v2/{repository}/manifests/{at}",
                "PUT",
                data=one.content,
                headers={"Content-Type": one.media_type},
            )
            assert pushed.status_code == 201, (one.media_type == INDEX, pushed.text)
        client.session.close()
        return f"oci://{self.host}/{name}"

    def downloads(self) -> list[str]:
        """Return the path of each blob that was read so far."""
        return re.findall(r'"GET (/v2/\S+/blobs/sha256:[0-9a-f]{64}) HTTP', self.log.read_text())


@contextmanager
def docker_registry(folder: Path, *, password: bool = False) -> Iterator[Registry]:
    """Run a registry in a folder. Skip the test where it cannot be had."""
    try:
        binary = docker_registry_binary()
    except DebianUnavailable as why:
        pytest.skip(str(why))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(_HTPASSWD)
    config = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    if password:
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [binary, "serve", str(folder / "config.yml")],
            stdout=out,
            stderr=subprocess.STDOUT,
            # It would take REGISTRY_* from the environment, and traces nowhere.
            env={"OTEL_TRACES_EXPORTER": "none"},
        ) as process,
    ):
        try:
            yield Registry(_host(process, log), log, folder, password)
        finally:
            process.terminate()


def _host(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return where it listens, once it does."""
    while process.poll() is None:
        if found := re.search(r"listening on (127\.0\.0\.1:[0-9]+)", log.read_text()):
            return found[1]
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"the registry ended: {log.read_text()}")


def logged_in(home: Path, host: str) -> None:
    """Leave credentials in a home directory, as `docker login` does."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (home / ".docker").mkdir(parents=True)
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
