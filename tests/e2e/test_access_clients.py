"""Right and wrong credentials, by each kind of client, and what the user reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.e2e.bearers import add_token
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.grpcurl import GRPCURL
from tests.e2e.over_tls import TlsSite
from tests.e2e.programs import ROOT, search_path
from tests.node_package import node_package

PAGE = (ROOT / "docs" / "how-to" / "call-with-credentials.md").read_text()
METHODS = {"capabilities": "GetCapabilities", "stats": "Stats"}
COMMANDS = {"capabilities": "whoami", "stats": "stats"}
Node = Callable[[str, Mapping[str, str]], str]


@dataclass(frozen=True)
class Site:
    """The daemon, and a folder with ca.pem, client.pem, client.key and NAME.token."""

    folder: Path
    tls: TlsSite
    daemon: Daemon

    @property
    def for_certificates(self) -> str:
        """Where it serves gRPC to callers with certificates, by a name in its certificate."""
        return self._local(self.daemon.address)

    @property
    def for_tokens(self) -> str:
        """Where it serves gRPC to callers with tokens."""
        return self._local(self.daemon._row("tokens").partition(" ")[0])

    @property
    def admin(self) -> str:
        """Where it serves HTTP."""
        return self._local(self.daemon.admin_url.partition("://")[2])

    def run(
        self, words: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of a caller in the folder."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
        inherited["PATH"] = search_path()
        return subprocess.run(
            words,
            cwd=self.folder,
            env={**inherited, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def _local(self, address: str) -> str:
        return f"localhost:{address.rpartition(':')[2]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run the daemon, with the tokens `ci`, `reader`, `unknown` and `expired`, a second old."""
    folder = tmp_path_factory.mktemp("site")
    state = fresh_state(folder / "state", own_keys=True, engines=ONE_ENGINE)
    tls = TlsSite(folder / "caller")
    texts = {
        "ci": add_token(state, "ci", "compile", "metrics"),
        "reader": add_token(state, "reader", "read"),
        "expired": add_token(state, "expired", "compile", expires="1s"),
        "unknown": "wk_0123456789ab_" + "A" * 32,
    }
    for name, text in texts.items():
        file = tls.authority.folder / f"{name}.token"
        file.touch(0o600)
        file.write_text(text)
    Authority(tls.authority.folder / "other")
    socket = f"unix:{tls.authority.folder}/kiln.sock"
    flags = tls.flags("--token-listen", "127.0.0.1:0", "--listen", socket)
    with Daemon(state, flags) as daemon:
        time.sleep(1)  # The expired one may have been made just now.
        yield Site(tls.authority.folder, tls, daemon)


@dataclass(frozen=True)
class Wrong:
    """One wrong way to call, and what comes of it."""

    sentence: str
    """A pattern of what users of the Python client read, and of its command."""
    code: int
    """The exit code of the command."""
    others: str
    """A pattern of what users of grpcurl read."""
    node: str
    """A pattern of what users of Node read."""
    tokens: bool = True
    """Whether it calls the address for tokens."""
    tls: bool = True
    ca: str = "ca.pem"
    host: str = ""
    token: str = ""
    method: str = "capabilities"


WRONG = {
    "no credentials": Wrong(
        r"cannot tell who calls: send a token .* \(in wasmkiln: token_file or WASMKILN_TOKEN_FILE;"
        r" .*\)",
        6,
        r"Code: Unauthenticated\s+Message: cannot tell who calls: send a token ",
        "CREDENTIALS_MISSING: cannot tell who calls: send a token ",
    ),
    "an unknown token": Wrong(
        r"cannot accept your token: the daemon does not know it; ask its operator for a new one",
        6,
        r"Code: Unauthenticated\s+Message: cannot accept your token: the daemon does not know it",
        "CREDENTIALS_INVALID: cannot accept your token: the daemon does not know it",
        token="unknown.token",
    ),
    "an expired token": Wrong(
        r"cannot accept your token: it has expired; ask for a new one",
        6,
        r"Code: Unauthenticated\s+Message: cannot accept your token: it has expired",
        "CREDENTIALS_INVALID: cannot accept your token: it has expired",
        token="expired.token",
    ),
    "a missing role": Wrong(
        r"cannot .*: it needs the role metrics, which your identity does not have; ask the operator"
        r" of the daemon",
        6,
        r"Code: PermissionDenied\s+Message: cannot .*: it needs the role metrics",
        "ROLE_MISSING: cannot .*: it needs the role metrics",
        token="reader.token",
        method="stats",
    ),
    "plaintext to a TLS port": Wrong(
        r"the daemon at \S+ closes connections, so it may speak TLS only: use tls .*",
        3,
        r"Failed to dial target host",
        r"CONNECTION_FAILED: no daemon answers at \S+ \(.*\): .*, or check the address and tls",
        tls=False,
        token="ci.token",
    ),
    "a CA that is not trusted": Wrong(
        r"the certificate of the daemon at \S+ is signed by none of the trusted CAs, those in .*",
        3,
        r"certificate signed by unknown authority",
        r"CONNECTION_FAILED: no daemon answers at \S+ \(.*unable to verify the first certificate",
        ca="other/ca.pem",
        token="ci.token",
    ),
    "another host": Wrong(
        r"the certificate of the daemon at \S+ is not for kiln\.example\.org: use .*",
        3,
        r"certificate is valid for localhost, not kiln\.example\.org",
        r"CONNECTION_FAILED: no daemon answers at \S+ \(.*does not match certificate's altnames",
        host="kiln.example.org",
        token="ci.token",
    ),
    "no client certificate": Wrong(
        r"the daemon at \S+ closes connections without a client certificate: use cert_file .*",
        3,
        r"Failed to dial target host",
        r"CONNECTION_FAILED: no daemon answers at \S+ \(.*\): .*, or check the address and tls",
        tokens=False,
        token="ci.token",
    ),
}


def address(site: Site, wrong: Wrong) -> str:
    return site.for_tokens if wrong.tokens else site.for_certificates


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_command(site: Site, wrong: Wrong) -> None:
    words = ["--address", address(site, wrong)]
    words += ["--ca-file", wrong.ca] if wrong.tls else []
    words += ["--server-name", wrong.host] if wrong.host else []
    words += ["--token-file", wrong.token] if wrong.token else []
    done = site.run(["wasmkiln", *words, COMMANDS[wrong.method]])
    assert done.returncode == wrong.code
    assert re.fullmatch(f"error: {wrong.sentence}\n", done.stderr), done.stderr


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_grpcurl(site: Site, wrong: Wrong) -> None:
    words = ["-cacert", wrong.ca] if wrong.tls else ["-plaintext"]
    words += ["-authority", wrong.host] if wrong.host else []
    if wrong.token:
        words += ["-expand-headers", "-H", "authorization: Bearer ${TOKEN}"]
    # The messages from files: reflection needs an identity too.
    words += ["-import-path", str(ROOT / "protos"), "-proto", "wasmkiln/v1/module_service.proto"]
    token = (site.folder / wrong.token).read_text().strip() if wrong.token else ""
    done = site.run(
        [
            *(GRPCURL, "-connect-timeout", "5", *words, address(site, wrong)),
            f"wasmkiln.v1.ModuleService/{METHODS[wrong.method]}",
        ],
        {"TOKEN": token},
    )
    assert done.returncode != 0
    assert re.search(wrong.others, done.stderr), done.stderr
    assert not token or token not in done.stdout + done.stderr


def blocks(language: str) -> list[str]:
    """The examples of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def here(site: Site, example: str) -> str:
    """An example with the addresses of the site."""
    grpc = site.for_certificates if "client.pem" in example else site.for_tokens
    return example.replace("localhost:50051", grpc).replace("localhost:9464", site.admin)


def identity(example: str) -> str:
    return "token:ci" if "ci.token" in example else "spiffe://example.org/builder/1"


@pytest.mark.parametrize("example", [*blocks("sh"), *blocks("python")])
def test_an_example(site: Site, example: str) -> None:
    language = ["python", "-c"] if "import " in example else ["bash", "-euo", "pipefail", "-c"]
    done = site.run([*language, here(site, example)])
    if "curl --" in example and "ci.token" not in example:
        # Without a policy, certificates may compile and no more.
        assert done.returncode == 22
        assert "it needs the role metrics" in done.stdout
        return
    assert done.returncode == 0, done.stderr
    assert ("wasmkiln_" if "curl --" in example else identity(example)) in done.stdout


def test_a_unix_socket_needs_nothing(site: Site) -> None:
    socket = f"unix:{site.folder}/kiln.sock"
    done = site.run(["wasmkiln", "--address", socket, "whoami", "--json"])
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["identity"] == socket
    assert set(answer["roles"]) == {"read", "compile", "admin", "metrics"}
    # A token counts before the socket.
    done = site.run(["wasmkiln", "--address", socket, "--token-file", "reader.token", "whoami"])
    assert "token:reader" in done.stdout


@pytest.mark.parametrize(
    ("options", "scheme", "code", "words"),
    [
        ("--cacert ca.pem", "https", 22, "cannot tell who calls"),
        ("--cacert ca.pem --oauth2-bearer wk_no_no", "https", 22, "does not know it"),
        ("--cacert other/ca.pem", "https", 60, "certificate"),
        ("", "http", 52, "Empty reply from server"),
    ],
)
def test_curl(site: Site, options: str, scheme: str, code: int, words: str) -> None:
    page = f"{scheme}://{site.admin}/metrics"
    done = site.run(["curl", "-sS", "--fail-with-body", *options.split(), page])
    assert done.returncode == code
    assert words in done.stdout + done.stderr


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    """Run a program of Node in the folder, with the client. Return its output."""
    modules = str(node_package().folder / "node_modules")

    def run(program: str, environ: Mapping[str, str]) -> str:
        done = site.run(["node", "-e", program], {**environ, "NODE_PATH": modules})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.npm
def test_the_example_for_node(site: Site, node: Node) -> None:
    [example] = blocks("js")
    assert node(here(site, example), {}) == "token:ci\n"


# The example, for every way to be wrong.
CALLER = """
const { Client } = require('wasmkiln')
const { ADDRESS, CA, HOST, TOKEN_FILE, METHOD } = process.env
const kiln = new Client(ADDRESS, {
  tls: CA && { ca: CA, serverName: HOST },
  tokenFile: TOKEN_FILE || undefined,
  timeoutMs: 20_000,
})
kiln[METHOD]().catch((error) => console.log(`${error.reason}: ${error.message}`))
  .finally(() => kiln.close())
"""


@pytest.mark.npm
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_node(site: Site, node: Node, wrong: Wrong) -> None:
    shown = node(
        CALLER,
        {
            "ADDRESS": address(site, wrong),
            "CA": wrong.ca if wrong.tls else "",
            "HOST": wrong.host,
            "TOKEN_FILE": wrong.token,
            "METHOD": wrong.method,
        },
    )
    assert re.match(wrong.node, shown), shown
