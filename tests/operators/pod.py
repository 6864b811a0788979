"""A pod of the chart, run on this machine: the rendered container in namespaces of its own.

Volumes are laid out as the kubelet does with an `fsGroup`: owned by root and the group, secrets
behind symbolic links. The user, its groups, the missing capabilities, the read-only root, the
variables and the arguments are those of the manifest. What is not there: the image (the programs
are those of this environment), the seccomp profile of the runtime, and resource limits.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.e2e.programs import ROOT, WASMKILN, WASMKILND, installed_engines
from tests.operators.helm import Rendered

ENGINE = "wasmtime-50.0.1"
_INSIDE = Path(__file__).with_name("pod_inside.py")
_NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")

Files = Mapping[str, bytes]


def lacks() -> str:
    """Return "" where pods can be run, else a sentence that says what is missing."""
    if os.geteuid() != 0:
        return "cannot run a pod: only root can become another user and mount"
    if not all(map(shutil.which, ("unshare", "nsenter", "mount"))):
        return "cannot run a pod: missing unshare, nsenter or mount (util-linux, mount)"
    return ""


class Pod:
    """The first pod of the chart; its volumes stay in ``folder`` when it ends."""

    def __init__(
        self,
        rendered: Rendered,
        folder: Path,
        secrets: Mapping[str, Files],
        *,
        claim_mode: int = 0o2775,
    ) -> None:
        """Prepare it; ``secrets`` are also the ConfigMaps that the chart does not make."""
        self._spec = rendered.pod["spec"]
        self._container = rendered.container
        context = self._spec["securityContext"]
        self._user, self._group = context["runAsUser"], context["runAsGroup"]
        self.fs_group = context["fsGroup"]
        self._folder = folder
        self._secrets = dict(secrets)
        config = rendered.one("ConfigMap")["data"]
        self._secrets["kiln-wasmkiln"] = {name: text.encode() for name, text in config.items()}
        self._process: subprocess.Popen[str] | None = None
        if not folder.exists():
            folder.mkdir(parents=True)
            self._lay_out(claim_mode)

    def _lay_out(self, claim_mode: int) -> None:
        engines = self.volume("image-engines")
        engines.mkdir()
        [source] = [each.path for each in installed_engines() if each.id == ENGINE]
        subprocess.run(["cp", "-a", str(source.resolve()), str(engines / ENGINE)], check=True)
        for volume in self._spec["volumes"]:
            place = self.volume(volume["name"])
            if "emptyDir" in volume:
                self._make(place, 0o2777)
            elif "hostPath" in volume:
                self._make(place, 0o750)
                os.chown(place, self._user, self._group)
            elif "secret" in volume:
                mode = volume["secret"]["defaultMode"]
                self._files(place, self._secrets[volume["secret"]["secretName"]], mode)
            else:
                self._files(place, self._secrets[volume["configMap"]["name"]], 0o644)
        if not self.volume("state").exists():
            self._make(self.volume("state"), claim_mode)

    def _make(self, place: Path, mode: int) -> None:
        place.mkdir()
        os.chown(place, 0, self.fs_group)
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
            os.chown(file, 0, self.fs_group)
            file.chmod(mode)
            (place / name).symlink_to(f"..data/{name}")

    def volume(self, name: str) -> Path:
        """Return where a volume is on this machine."""
        return self._folder / name

    def prepare(self) -> None:
        """Run the init containers."""
        for container in self._spec.get("initContainers", ()):
            done = self._start(container, container["command"])
            _, errors = done.communicate()
            assert done.returncode == 0, errors

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `wasmkilnd` with other arguments in the container, and wait for its end."""
        process = self._start(self._container, [_program("wasmkilnd"), *words])
        output, errors = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    def __enter__(self) -> Self:
        """Start the daemon, with the arguments of the manifest."""
        command = [_program("wasmkilnd"), *self._container["args"]]
        with (self._folder / "log").open("w") as log:
            self._process = self._start(self._container, command, log)
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        """What the daemon has written."""
        return (self._folder / "log").read_text()

    def stop(self) -> int:
        """End the daemon as the kubelet does; return its exit code."""
        assert self._process
        os.kill(self._daemon, signal.SIGTERM)
        return self._process.wait(timeout=self._spec["terminationGracePeriodSeconds"] * 3)

    def wait_until_started(self) -> None:
        """Ask the startup probe as often as the manifest says; have three times the patience."""
        probe = self._container["startupProbe"]
        for _ in range(3 * probe["failureThreshold"]):
            if self.probe("startupProbe"):
                return
            time.sleep(probe["periodSeconds"])
        raise AssertionError(f"the daemon did not start: {self.log}")

    def probe(self, name: str) -> bool:
        """Ask as the kubelet does for a probe of the manifest; return whether it succeeds."""
        assert self._process
        assert self._process.poll() is None, self.log
        probe = self._container[name]
        ports = {each["name"]: each["containerPort"] for each in self._container["ports"]}
        if grpc := probe.get("grpc"):
            words = [_program("wasmkiln"), "--address", f"127.0.0.1:{grpc['port']}", "health"]
            return self.exec(*words).returncode == 0
        http = probe["httpGet"]
        url = f"{http['scheme'].lower()}://127.0.0.1:{ports[http['port']]}{http['path']}"
        code = (
            "import ssl, sys, urllib.request as r;"
            "r.urlopen(sys.argv[1], context=ssl._create_unverified_context(), timeout=30)"
        )
        return self.exec(sys.executable, "-c", code, url).returncode == 0

    def exec(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run something in the container, as `kubectl exec` does."""
        enter = ["nsenter", f"--target={self._daemon}", "--mount", "--net", "--pid", "--root"]
        user = [f"--setuid={self._user}", f"--setgid={self._group}", "--wd=/tmp"]
        environ = [f"{key}={value}" for key, value in self._environ(self._container).items()]
        return subprocess.run(
            [*enter, *user, "env", "-i", *environ, *words],
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def _daemon(self) -> int:
        """The first process of the namespace; 0 before there is one."""
        assert self._process
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int((children.read_text().split() or ["0"])[0])

    def _start(
        self, container: Mapping[str, Any], command: Sequence[str], log: Any = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        scratch = self._folder / "scratch"
        scratch.mkdir(exist_ok=True)
        image = {"path": "/var/lib/wasmkiln/engines", "source": str(self.volume("image-engines"))}
        question = {
            "scratch": str(scratch),
            "mounts": [
                {**image, "read_only": True},
                *(
                    {
                        "path": mount["mountPath"],
                        "source": str(self.volume(mount["name"]) / mount.get("subPath", "")),
                        "read_only": mount.get("readOnly", False),
                    }
                    for mount in container["volumeMounts"]
                ),
            ],
            "readable": [
                *(str(ROOT / "x"), os.path.realpath(sys.executable), f"{sys.base_prefix}/x"),
                *(WASMKILND, WASMKILN),
            ],
            "groups": [self.fs_group],
            "group": self._group,
            "user": self._user,
            "command": list(command),
            "environ": self._environ(container),
        }
        asked = self._folder / "container.json"
        asked.write_text(json.dumps(question))
        with asked.open() as standard_input:
            return subprocess.Popen(
                [*_NAMESPACES, sys.executable, str(_INSIDE)],
                stdin=standard_input,
                stdout=log,
                stderr=log,
                text=True,
            )

    def _environ(self, container: Mapping[str, Any]) -> dict[str, str]:
        """Return the variables of the image, and over them those of the manifest."""
        image = (ROOT / "deploy" / "Dockerfile").read_text()
        environ = dict(re.findall(r"\b(WASMKILN_\w+)=(\S+)", image))
        programs = (Path(WASMKILND).parent, Path(WASMKILN).parent, Path(sys.executable).parent)
        environ["PATH"] = ":".join([*map(str, programs), "/usr/local/bin", "/usr/bin", "/bin"])
        for each in container.get("env", ()):
            if "value" in each:
                environ[each["name"]] = each["value"]
            else:
                wanted = each["valueFrom"]["secretKeyRef"]
                environ[each["name"]] = self._secrets[wanted["name"]][wanted["key"]].decode()
        return environ


def signing_key() -> bytes:
    """Return a key as `wasmkilnd keys generate --print` writes it."""
    return base64.b64encode(os.urandom(32)) + b"\n"


def _program(name: str) -> str:
    return {"wasmkilnd": WASMKILND, "wasmkiln": WASMKILN}[name]
