"""Every kind of Redis that the daemon can be pointed at, run for real."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.certificates import certificates
from tests.servers.cluster import cluster
from tests.servers.redis_server import binary_of, free_ports, redis_server
from tests.servers.rest_service import RestService, serving
from tests.servers.sentinels import sentinels

Kind: TypeAlias = "Callable[[Path], AbstractContextManager[Deployment]]"

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "redis.md"


@dataclass(frozen=True)
class Access:
    """Credentials and certificates for a server, as far as its URL does not hold them."""

    ca_file: str = ""
    password: str = ""
    password_file: str = ""

    def environment(self, url: str) -> dict[str, str]:
        """Return the variables that an operator would set for a daemon."""
        if url.startswith("https:"):
            return {
                "UPSTASH_REDIS_URL": url,
                "UPSTASH_REDIS_TOKEN": self.password,
                "WASMKILN_REDIS_CA_FILE": self.ca_file,
            }
        given = {"url": url, **asdict(self)}
        return {f"WASMKILN_REDIS_{name.upper()}": value for name, value in given.items() if value}


NO_ACCESS = Access()


@dataclass(frozen=True)
class Deployment:
    """Something behind a URL."""

    url: str
    access: Access = NO_ACCESS
    raw: Sequence[Callable[[], redis.Redis]] = ()
    """Make clients of somebody else's, with all rights, of each of its servers."""
    stranger: tuple[str, Access] | None = None
    """The same with a wrong password, which is ``wrong-secret``; None where there is none."""
    fail_over: Callable[[], None] = lambda: None
    """Kills a primary with SIGKILL and returns when another has taken over."""
    parts: Any = None
    """What it is made of."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that an operator would set for a daemon."""
        return self.access.environment(self.url)


def _client(url: str, **options: Any) -> Callable[[], redis.Redis]:
    return lambda: redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)


@contextmanager
def _valkey(folder: Path) -> Iterator[Deployment]:
    with redis_server(binary_of("valkey"), folder) as running:
        yield Deployment(running.url, raw=[_client(running.url)])


@contextmanager
def _debian(folder: Path) -> Iterator[Deployment]:
    [port] = free_ports(1)
    with redis_server(binary_of("redis-server"), folder, port=port) as running:
        yield Deployment(f"redis://127.0.0.1:{port}", raw=[_client(running.url)])


@contextmanager
def _tls(folder: Path) -> Iterator[Deployment]:
    """TLS and a password for the default user, as Upstash's protocol endpoint has them."""
    pems = certificates(folder / "pems")
    [port] = free_ports(1)
    tls = f"--tls-port {port} --tls-auth-clients no --tls-ca-cert-file {pems.ca_file}"
    tls += f" --tls-cert-file {pems.cert_file} --tls-key-file {pems.key_file}"
    settings = [*tls.split(), "--requirepass", "pass/word"]
    with redis_server(binary_of("redis-server"), folder, settings) as running:
        access = Access(ca_file=str(pems.ca_file))
        yield Deployment(
            f"rediss://default:pass%2Fword@127.0.0.1:{port}",
            access,
            [_client(running.url, password="pass/word")],
            (f"rediss://default:wrong-secret@127.0.0.1:{port}", access),
        )


def documented_user() -> str:
    """Return the line of a server's configuration that docs/how-to/redis.md tells operators."""
    [rule] = re.findall(
        r"^ACL SETUSER (wasmkiln on >PASSWORD .*)$", _PAGE.read_text(), re.MULTILINE
    )
    return f"user {rule.replace('PASSWORD', 'secret')}"


@contextmanager
def _acl(folder: Path) -> Iterator[Deployment]:
    """A user who may do what is documented, and nothing else."""
    [port] = free_ports(1)
    with redis_server(
        binary_of("redis-server"), folder, port=port, config=[documented_user()]
    ) as running:
        password_file = folder / "password"
        password_file.write_text("secret\n")
        url = f"redis://wasmkiln@127.0.0.1:{port}"
        yield Deployment(
            url,
            Access(password_file=str(password_file)),
            [_client(running.url)],
            (url, Access(password="wrong-secret")),
        )


@contextmanager
def _sentinel(folder: Path) -> Iterator[Deployment]:
    with sentinels(binary_of("redis-server"), folder) as running:
        yield Deployment(
            running.url,
            stranger=(running.url_with("wrong-secret"), NO_ACCESS),
            fail_over=running.fail_over,
            parts=running,
        )


@contextmanager
def _cluster(folder: Path) -> Iterator[Deployment]:
    with cluster(binary_of("redis-server"), folder, [documented_user()]) as running:
        yield Deployment(
            running.url.replace("://", "://wasmkiln:secret@"),
            stranger=(running.url.replace("://", "://wasmkiln:wrong-secret@"), NO_ACCESS),
            raw=[_client(node.url) for node in running.nodes.values()],
            fail_over=running.fail_over,
            parts=running,
        )


@contextmanager
def _rest(folder: Path) -> Iterator[Deployment]:
    pems = certificates(folder / "pems")
    with ExitStack() as stack:
        running = stack.enter_context(redis_server(binary_of("redis-server"), folder))
        service = RestService(running.url.removeprefix("unix://"), "the-token")
        url = stack.enter_context(serving(service, pems))
        yield Deployment(
            url,
            Access(ca_file=str(pems.ca_file), password="the-token"),
            [_client(running.url)],
            (url, Access(ca_file=str(pems.ca_file), password="wrong-secret")),
            parts=service,
        )


KINDS_OF_REDIS: dict[str, Kind] = {
    "unix": _valkey,
    "redis": _debian,
    "rediss": _tls,
    "acl": _acl,
    "rest": _rest,
    "sentinel": _sentinel,
    "cluster": _cluster,
}
