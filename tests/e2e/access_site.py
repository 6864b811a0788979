"""A daemon that asks who calls, over TLS, and a folder with what its callers need."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.authority import Authority, Pair
from tests.e2e.daemon import Daemon
from tests.e2e.programs import search_path, wasmkilnd


@dataclass(frozen=True)
class Site:
    """The daemon, and a folder with ca.pem, client.pem, client.key and NAME.token."""

    folder: Path
    authority: Authority
    client: Pair
    daemon: Daemon

    @property
    def for_certificates(self) -> str:
        """Where it serves gRPC to callers with certificates, by a name in its certificate."""
        return self._local(self.daemon.address)

    @property
    def for_tokens(self) -> str:
        """Where it serves gRPC to callers with tokens."""
        found = re.search(r"^  tokens +(\S+)", self.daemon.banner, re.MULTILINE)
        assert found, self.daemon.banner
        return self._local(found[1])

    @property
    def admin(self) -> str:
        """Where it serves HTTP."""
        return self._local(self.daemon.admin_url.partition("://")[2])

    def run(
        self, words: Sequence[str], environ: Mapping[str, str] | None = None, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of a caller in the folder."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
        inherited["PATH"] = search_path()
        return subprocess.run(
            words,
            cwd=self.folder,
            env={**inherited, **(environ or {})},
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def _local(self, address: str) -> str:
        return f"localhost:{address.rpartition(':')[2]}"


@contextmanager
def access_site(folder: Path, state_dir: Path) -> Iterator[Site]:
    """Run the daemon, with the tokens `ci`, `reader` and `expired`, which counts for a second."""
    authority = Authority(folder)
    server = authority.server()
    client = authority.client(spiffe="spiffe://example.org/builder/1")
    for name, *words in (
        ("ci", "--role", "compile", "--role", "metrics"),
        ("reader", "--role", "read"),
        ("expired", "--role", "compile", "--expires", "1s"),
    ):
        file = folder / f"{name}.token"
        file.touch(0o600)
        file.write_text(wasmkilnd("token", "add", name, *words, "--state-dir", str(state_dir)))
    flags = ["--tls-cert-file", str(server.cert_file), "--tls-key-file", str(server.key_file)]
    flags += ["--tls-client-ca-file", str(authority.ca_file), "--token-listen", "127.0.0.1:0"]
    flags += ["--listen", f"unix:{folder}/kiln.sock"]
    flags += ["--redis-url", "none", "--workers", "1"]
    with Daemon(state_dir, flags) as daemon:
        yield Site(folder, authority, client, daemon)
