"""A daemon whose callers are tenants that do not trust each other, and their clients."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import grpc
from wasmkiln import Client
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import module_service_pb2_grpc, types_pb2

from tests.e2e.bearers import add_token
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state

ALL = ("compile", "admin", "metrics")
# Tenants, and the namespace of each: two, and an operator in the default one.
NAMESPACES = {"a": "team-a", "b": "team-b", "ops": ""}


@cache
def _given() -> tuple[dict[str, str], bytes]:
    """Make a token with every role for each tenant, once; return them, and the file with them."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        given = {w: add_token(state, w, *ALL, namespace=space) for w, space in NAMESPACES.items()}
        return given, (state / "access" / "tokens.json").read_bytes()


def give_tokens(state: Path) -> dict[str, str]:
    """Give a state directory the tokens of the tenants; return them."""
    tokens, content = _given()
    access = state / "access"
    access.mkdir(mode=0o700, exist_ok=True)
    file = access / "tokens.json"
    file.touch(mode=0o600)
    file.write_bytes(content)
    return tokens


@dataclass
class House:
    """A daemon, and who calls it."""

    daemon: Daemon
    tokens: Mapping[str, str]
    _clients: list[Client] = field(default_factory=list)

    def client(self, who: str, **options: object) -> Client:
        """Return a new client of a tenant, which is closed with the house."""
        made = Client(self.daemon.address, token=self.tokens[who], **options)  # type: ignore[arg-type]
        self._clients.append(made)
        return made

    def compile_bytes(self, who: str, module: bytes) -> types_pb2.ArtifactHeader:
        """Call Compile with a module, which the clients never do without asking by digest first."""
        with grpc.insecure_channel(self.daemon.address) as channel:
            stub = module_service_pb2_grpc.ModuleServiceStub(channel)
            metadata = [("authorization", f"Bearer {self.tokens[who]}")]
            answer = stub.Compile(pb.CompileRequest(module=module), metadata=metadata)
            header: types_pb2.ArtifactHeader = next(iter(answer)).header
            return header

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients:
            client.close()


@contextmanager
def house(
    state: Path,
    *,
    policy: str = "",
    tokens: Mapping[str, str] | None = None,
    engines: Sequence[str] = ONE_ENGINE,
    **settings: str,
) -> Iterator[House]:
    """Run a daemon with the tenants of NAMESPACES, or those who have ``tokens`` already."""
    fresh_state(state, engines=engines)
    tokens = tokens or give_tokens(state)
    environ = {f"WASMKILN_{name}": value for name, value in settings.items()}
    if policy:
        file = state.parent / f"{state.name}-policy.toml"
        file.write_text(policy)
        environ["WASMKILN_POLICY_FILE"] = str(file)
    with Daemon(state, environ=environ) as daemon:
        running = House(daemon, tokens)
        try:
            yield running
        finally:
            running.close()
