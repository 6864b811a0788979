"""Every kind of object store that the daemon can be pointed at, run for real on loopback.

Of Google's there is none: what stands in for it on PyPI either overwrites, where an object is to be
made only if there is none, or does not speak the XML interface that obstore uses.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import fcntl
import hashlib
import hmac
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias
from urllib.request import Request, urlopen

import obstore
from obstore.store import AzureStore, LocalStore, S3Store

from tests.node_package import demand_npm, npm_ci
from tests.servers.redis_server import free_ports, wait_until

BUCKET, PREFIX = "artifacts", "fleet/one"
SECRET = "store-secret"

_ROOT = Path(__file__).resolve().parents[2]
_BIN = Path(sys.executable).parent
# What Azurite's documentation says of the account that it makes.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

Kind: TypeAlias = "Callable[[Path], AbstractContextManager[ObjectStore]]"


class Process:
    """A server that can be killed and started again with what it had stored."""

    def __init__(self, command: Sequence[str], folder: Path, port: int) -> None:
        self._command, self._folder, self._port = command, folder, port
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, for the first time or again, and wait until it accepts connections."""
        log = self._folder / "server.log"
        with log.open("ab") as told:
            running = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=told,
            )
        self._running = running

        def accepts() -> bool:
            assert running.poll() is None, log.read_text()[-2000:]
            with socket.socket() as probe:
                return not probe.connect_ex(("127.0.0.1", self._port))

        wait_until(accepts, f"{self._command[0]} did not start")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it. Only by SIGKILL does SeaweedFS end soon."""
        assert self._running
        self._running.send_signal(number)
        if number is signal.SIGKILL:
            self._running.wait()


@dataclass(frozen=True)
class ObjectStore:
    """A store that runs."""

    url: str
    raw: Any
    """A client of somebody else's, with all rights, below the URL's prefix."""
    access: Mapping[str, str] = field(default_factory=dict)
    """The variables that an operator would set for a daemon beside the URL."""
    stranger: Mapping[str, str] = field(default_factory=dict)
    """The same of somebody who is not let in; empty where there is none."""
    port: int = 0
    process: Process | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that an operator would set for a daemon."""
        return {"WASMKILN_OBJECT_STORE_URL": self.url, **self.access}

    def behind(self, port: int) -> dict[str, str]:
        """Return the same where somebody at another port passes everything on."""
        there = f"127.0.0.1:{port}"
        return {k: v.replace(f"127.0.0.1:{self.port}", there) for k, v in self.environment.items()}

    def names(self, part: str = "", largest: int | None = None) -> list[str]:
        """Return the names of all values that hold ``part``, or of the ``largest`` of them."""
        found = [each for page in obstore.list(self.raw) for each in page if part in each["path"]]
        found.sort(key=lambda each: each["size"], reverse=True)
        return sorted(each["path"] for each in found[:largest])

    def values(self, part: str = "", largest: int | None = None) -> dict[str, bytes]:
        """Return these values, by name. Somebody else may delete some meanwhile."""
        found = {}
        for name in self.names(part, largest):
            with contextlib.suppress(FileNotFoundError):
                found[name] = self.get(name)
        return found

    def get(self, name: str) -> bytes:
        """Return a value that is there."""
        return bytes(obstore.get(self.raw, name).bytes())

    def put(self, values: Mapping[str, bytes]) -> None:
        """Write values over what is there."""
        for name, value in values.items():
            obstore.put(self.raw, name, value)

    def delete(self, *names: str) -> None:
        """Delete values that are there."""
        obstore.delete(self.raw, names)


@contextmanager
def _served(command: Sequence[str], folder: Path, port: int) -> Iterator[Process]:
    """Run a server in ``folder`` until the context ends."""
    process = Process(command, folder, port)
    try:
        process.start()
        yield process
    finally:
        process.signal(signal.SIGKILL)


@contextmanager
def _seaweedfs(folder: Path) -> Iterator[ObjectStore]:
    """Run a master, a volume server, a filer and the S3 interface, in one process."""
    names = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(names))
    folder.mkdir(parents=True)
    users = {"kiln": ["Admin", "Read", "Write", "List"], "guest": ["Read:another"]}
    identities = [
        {
            "name": user,
            "credentials": [{"accessKey": user, "secretKey": SECRET}],
            "actions": actions,
        }
        for user, actions in users.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    flags = [f"-{name}.port={ports[at]}" for at, name in enumerate(names)]
    flags += [f"-{name}.port.grpc={ports[at + len(names)]}" for at, name in enumerate(names)]
    flags += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-filer", "-s3"]
    flags += [f"-s3.config={folder}/s3.json", "-s3.iam=false", "-s3.port.iceberg=0"]
    flags += ["-s3.port.lance=0", "-master.telemetry=false"]
    # A master that was killed waits that long before it takes itself for the leader.
    flags += ["-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"]
    # Volumes grow by several at once, one group for each bucket.
    flags += ["-master.volumeSizeLimitMB=64", "-volume.max=100"]
    port = ports[names.index("s3")]
    with (
        _sockets_removed(ports),
        _served([str(_BIN / "weed"), "server", *flags], folder, port) as process,
    ):
        store = _s3(port, _s3_access(port), process, _s3_access(port, "guest"))

        def takes_writes() -> bool:
            try:
                store.put({"begun": bytes(2**20)})  # Makes the bucket, too.
            except obstore.exceptions.BaseError:
                return False
            return True

        wait_until(takes_writes, "SeaweedFS takes no writes")
        store.delete("begun")
        yield store


@contextmanager
def _sockets_removed(ports: Sequence[int]) -> Iterator[None]:
    """Remove the sockets that SeaweedFS makes for its ports, wherever else its files are."""
    try:
        yield
    finally:
        for port in ports:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)


@contextmanager
def _moto(folder: Path) -> Iterator[ObjectStore]:
    """Run moto, which lets anybody in."""
    [port] = free_ports(1)
    folder.mkdir(parents=True)
    command = [str(_BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with _served(command, folder, port) as process:
        urlopen(Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")).close()
        yield _s3(port, _s3_access(port), process, {})


def _s3_access(port: int, user: str = "kiln") -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": user,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }


def _s3(
    port: int,
    access: Mapping[str, str],
    process: Process,
    stranger: Mapping[str, str],
) -> ObjectStore:
    raw = S3Store(
        BUCKET,
        prefix=PREFIX,
        access_key_id=access["AWS_ACCESS_KEY_ID"],
        secret_access_key=SECRET,
        endpoint=access["AWS_ENDPOINT"],
        region=access["AWS_REGION"],
        client_options={"allow_http": True},
    )
    url = f"s3://{BUCKET}/{PREFIX}"
    return ObjectStore(url, raw, access, stranger, port, process)


@cache
def _azurite_program() -> str:
    """Install Azurite as it is locked, unless that was done before; return its program.

    Skip the test where that cannot be.
    """
    demand_npm()
    locked = Path(__file__).with_name("azurite")
    digest = hashlib.sha256((locked / "package-lock.json").read_bytes()).hexdigest()
    folder = _ROOT / ".work" / "azurite" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    with (folder / ".lock").open("w") as waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)
        if not (folder / ".whole").exists():
            npm_ci(locked, folder)
            (folder / ".whole").touch()
    return str(program)


@contextmanager
def _azurite(folder: Path) -> Iterator[ObjectStore]:
    program = _azurite_program()
    [port] = free_ports(1)
    folder.mkdir(parents=True)
    endpoint = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    flags = ["--blobPort", str(port), "--location", str(folder), "--silent", "--disableTelemetry"]
    access = {
        "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": _KEY,
        "AZURE_STORAGE_ENDPOINT": endpoint,
        "AZURE_ALLOW_HTTP": "true",
    }
    stranger = {**access, "AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(bytes(64)).decode()}
    raw = AzureStore(
        BUCKET,
        prefix=PREFIX,
        account_name=_ACCOUNT,
        account_key=_KEY,
        endpoint=endpoint,
        client_options={"allow_http": True},
    )
    with _served(["node", program, *flags], folder, port) as process:
        _make_container(endpoint)
        yield ObjectStore(f"az://{BUCKET}/{PREFIX}", raw, access, stranger, port, process)


def _make_container(endpoint: str) -> None:
    """Make it by Azure's own protocol: obstore makes none."""
    said = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in said.items())]
    lines += [f"/{_ACCOUNT}/{_ACCOUNT}/{BUCKET}", "restype:container"]
    signed = hmac.digest(base64.b64decode(_KEY), "\n".join(lines).encode(), "sha256")
    said["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(signed).decode()}"
    url = f"{endpoint}/{BUCKET}?restype=container"
    urlopen(Request(url, method="PUT", headers=said)).close()


@contextmanager
def _directory(folder: Path) -> Iterator[ObjectStore]:
    where = folder / PREFIX
    where.mkdir(parents=True)
    yield ObjectStore(f"file://{where}", LocalStore(where))


KINDS_OF_OBJECT_STORES: dict[str, Kind] = {
    "directory": _directory,
    "seaweedfs": _seaweedfs,
    "moto": _moto,
    "azurite": _azurite,
}
