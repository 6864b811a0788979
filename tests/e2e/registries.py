"""Debian's docker-registry, started by tests, and images copied to it and from it by skopeo."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.oci import Image, layout
from tests.servers.debian import DebianUnavailable, docker_registry_binary, skopeo_binary


@dataclass
class Registry:
    """A running registry."""

    host: str
    skopeo: str
    folder: Path

    def push(self, name: str, image: Image) -> str:
        """Push an image as REPOSITORY:TAG; return skopeo's reference of it."""
        reference = f"docker://{self.host}/{name}"
        self._copy(f"oci:{layout(self.folder / name.replace(':', '-'), image)}", reference)
        return reference

    def pull(self, reference: str, folder: Path) -> Path:
        """Copy what a reference stands for into a folder in OCI's layout."""
        self._copy(reference, f"oci:{folder}")
        return folder

    def _copy(self, source: str, target: str) -> None:
        # There is no policy of the machine's own that says whose images it takes.
        words = ["--insecure-policy", "copy", "--all", "--preserve-digests"]
        words += ["--src-tls-verify=false", "--dest-tls-verify=false", source, target]
        done = subprocess.run([self.skopeo, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@contextmanager
def docker_registry(folder: Path) -> Iterator[Registry]:
    """Run a registry in a folder. Skip the test where it or skopeo cannot be had."""
    try:
        binary, skopeo = docker_registry_binary(), skopeo_binary()
    except DebianUnavailable as why:
        pytest.skip(str(why))
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": "127.0.0.1:0"},
    }
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
            yield Registry(_host(process, log), skopeo, folder)
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
