"""A pod of the chart, run by podman: its containers with the volumes, the user and the variables.

Volumes are laid out as the kubelet does with an `fsGroup`: owned by root and the group, secrets
behind symbolic links. What is not there: the seccomp profile of the runtime, and resource limits.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.operators.helm import Rendered
from tests.operators.image import CONFINED, IMAGE, limits, log_of, podman, ran_by_podman, running

Files = Mapping[str, bytes]
ASK = (
    "import ssl, sys, urllib.request as r;"
    "r.urlopen(sys.argv[1], context=ssl._create_unverified_context(), timeout=30)"
)


class Pod:
    """The first pod of the chart; its volumes stay in ``folder`` when it ends."""

    name = f"kiln-pod-{os.getpid()}"

    def __init__(self, rendered: Rendered, folder: Path, secrets: Mapping[str, Files]) -> None:
        """Lay out its volumes; ``secrets`` are also the ConfigMaps that the chart does not make."""
        self._spec, self._container = rendered.pod["spec"], rendered.container
        self._context = self._spec["securityContext"]
        self._folder = folder
        config = rendered.one("ConfigMap")["data"]
        own = {name: text.encode() for name, text in config.items()}
        self._secrets = {**secrets, "kiln-wasmkiln": own}
        folder.mkdir()
        self._make(self.volume("state"), 0o2775)
        for volume in self._spec["volumes"]:
            place = self.volume(volume["name"])
            if "emptyDir" in volume:
                self._make(place, 0o2777)
            elif "hostPath" in volume:
                self._make(place, 0o750)
                os.chown(place, self._context["runAsUser"], self._context["runAsGroup"])
            elif "secret" in volume:
                mode = volume["secret"]["defaultMode"]
                self._files(place, self._secrets[volume["secret"]["secretName"]], mode)
            else:
                self._files(place, self._secrets[volume["configMap"]["name"]], 0o644)

    def _make(self, place: Path, mode: int) -> None:
        place.mkdir(exist_ok=True)
        os.chown(place, 0, self._context["fsGroup"])
        place.chmod(mode)

    def _files(self, place: Path, files: Files, mode: int) -> None:
        """Lay out a Secret or ConfigMap: names, `..data`, and the folder of this version."""
        self._make(place, 0o3777)
        version = place / "..2026_11_28_02_00_00.1"
        self._make(version, 0o2755)
        (place / "..data").symlink_to(version.name)
        for name, content in files.items():
            file = version / name
            file.write_bytes(content)
            os.chown(file, 0, self._context["fsGroup"])
            file.chmod(mode)
            (place / name).symlink_to(f"..data/{name}")

    def volume(self, name: str) -> Path:
        """Return where a volume is on this machine."""
        return self._folder / name

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the init containers, and then the daemon until the context ends, once it started."""
        for container in self._spec.get("initContainers", ()):
            entry = f"--entrypoint={json.dumps(container['command'])}"
            podman("run", "--rm", *CONFINED, *limits(), *self._flags(container), entry, IMAGE)
        words = [*self._flags(self._container), IMAGE, *self._container["args"]]
        with running(self.name, *words):
            probe = self._container["startupProbe"]
            # As often as the manifest says, with three times the patience.
            for _ in range(3 * probe["failureThreshold"]):
                if self.probe("startupProbe"):
                    break
                time.sleep(probe["periodSeconds"])
            else:
                raise AssertionError(f"the daemon did not start: {log_of(self.name)}")
            yield
            podman(
                "stop", "--time", str(3 * self._spec["terminationGracePeriodSeconds"]), self.name
            )
            ended = podman("inspect", self.name, "--format", "{{.State.ExitCode}}")
            assert ended == "0", log_of(self.name)

    def probe(self, name: str) -> bool:
        """Ask as the kubelet does for a probe of the manifest; return whether it succeeds."""
        probe = self._container[name]
        ports = {each["name"]: each["containerPort"] for each in self._container["ports"]}
        if grpc := probe.get("grpc"):
            return not self.failure_of(
                "wasmkiln", "--address", f"127.0.0.1:{grpc['port']}", "health"
            )
        http = probe["httpGet"]
        url = f"{http['scheme'].lower()}://127.0.0.1:{ports[http['port']]}{http['path']}"
        return not self.failure_of("python3", "-c", ASK, url)

    def failure_of(self, *words: str) -> str:
        """Run something in the container, as `kubectl exec` does. Return "" or why it failed."""
        done = ran_by_podman("exec", self.name, *words)
        return f"exit code {done.returncode}: {done.stderr}" if done.returncode else ""

    def _flags(self, container: Mapping[str, Any]) -> list[str]:
        user = f"{self._context['runAsUser']}:{self._context['runAsGroup']}"
        group = str(self._context["fsGroup"])
        flags = ["--user", user, "--group-add", group, "--network", "none"]
        # What the image has as volumes is read-only here, like the rest of it.
        flags += ["--read-only-tmpfs=false", "--image-volume=ignore"]
        for mount in container["volumeMounts"]:
            source = self.volume(mount["name"]) / mount.get("subPath", "")
            mode = "ro" if mount.get("readOnly") else "rw"
            flags.append(f"--volume={source}:{mount['mountPath']}:{mode}")
        for each in container.get("env", ()):
            value = each.get("value")
            if value is None:
                wanted = each["valueFrom"]["secretKeyRef"]
                value = self._secrets[wanted["name"]][wanted["key"]].decode()
            flags.append(f"--env={each['name']}={value}")
        return flags


def signing_key() -> bytes:
    """Return a key as `wasmkilnd keys generate --print` writes it."""
    return base64.b64encode(os.urandom(32)) + b"\n"
