"""The examples of the page on credentials, and what the command says of wrong ones."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.bearers import add_token
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.over_tls import TlsSite
from tests.e2e.programs import ROOT, search_path, without_settings
from tests.node_package import node_package

PAGE = (ROOT / "docs" / "how-to" / "call-with-credentials.md").read_text()


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
        return subprocess.run(
            words,
            cwd=self.folder,
            env={**without_settings(), "PATH": search_path(), **(environ or {})},
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
    flags = tls.flags("--token-listen", "127.0.0.1:0")
    with Daemon(state, flags) as daemon:
        time.sleep(1)  # The expired one may have been made just now.
        yield Site(tls.authority.folder, tls, daemon)


# By what is wrong: the flags and the command, its exit code, and a pattern of what the user reads.
# How TLS fails is in tests/unit/client/test_tls.py; what other clients read, in tests/polyglot.
WRONG = {
    "no credentials": (
        *("--ca-file ca.pem whoami", 6),
        r"cannot tell who calls: send a token .* \(in wasmkiln: token_file or WASMKILN_TOKEN_FILE;"
        r" .*\)",
    ),
    "an unknown token": (
        *("--ca-file ca.pem --token-file unknown.token whoami", 6),
        r"cannot accept your token: the daemon does not know it; ask its operator for a new one",
    ),
    "an expired token": (
        *("--ca-file ca.pem --token-file expired.token whoami", 6),
        r"cannot accept your token: it has expired; ask for a new one",
    ),
    "a missing role": (
        *("--ca-file ca.pem --token-file reader.token stats", 6),
        r"cannot .*: it needs the role metrics, which your identity does not have; ask the operator"
        r" of the daemon",
    ),
    "another host": (
        *("--ca-file ca.pem --server-name kiln.example.org whoami", 3),
        r"the certificate of the daemon at \S+ is not for kiln\.example\.org: use .*",
    ),
}


@pytest.mark.parametrize(("words", "code", "sentence"), WRONG.values(), ids=WRONG)
def test_the_command(site: Site, words: str, code: int, sentence: str) -> None:
    done = site.run(["wasmkiln", "--address", site.for_tokens, *words.split()])
    assert done.returncode == code
    assert re.fullmatch(f"error: {sentence}\n", done.stderr), done.stderr


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


# What Node's users read when the daemon's certificate is for another host.
ANOTHER_HOST = """
const { Client } = require('wasmkiln')
const tls = { ca: 'ca.pem', serverName: 'kiln.example.org' }
const kiln = new Client(process.env.ADDRESS, { tls, timeoutMs: 20_000 })
kiln.capabilities().catch((error) => console.log(`${error.reason}: ${error.message}`))
  .finally(() => kiln.close())
"""
READ = (
    r"CONNECTION_FAILED: no daemon answers at \S+ \(.*does not match certificate's altnames.*\): .*"
    r", or check the address and tls\n"
)


@pytest.mark.npm
def test_node(site: Site) -> None:
    [example] = blocks("js")
    environ = {
        "ADDRESS": site.for_tokens,
        "NODE_PATH": str(node_package().folder / "node_modules"),
    }
    for program, printed in ((here(site, example), "token:ci\n"), (ANOTHER_HOST, READ)):
        done = site.run(["node", "-e", program], environ)
        assert re.fullmatch(printed, done.stdout), done.stdout + done.stderr
