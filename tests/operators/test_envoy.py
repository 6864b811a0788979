"""A real Envoy with the configuration of deploy/ in front of two daemons."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import yaml
from wasmkiln import Client, WasmkilnError
from wasmkiln.v1 import admin_service_pb2
from wasmkiln.v1.admin_service_pb2_grpc import AdminServiceStub

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, modules
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.floods import KINDS, Flood
from tests.e2e.processes import eventually
from tests.e2e.programs import ROOT, installed_engines
from tests.servers.redis_server import free_ports

CONFIGURATION = ROOT / "deploy" / "envoy.yaml"
MOST_CONNECTIONS = 8


MANAGER = "http_connection_manager.v3.HttpConnectionManager"
# Where a filter's code comes from, and a filter that lets all requests pass.
FETCHES = """
static_resources:
  listeners:
    - address: {socket_address: {address: 127.0.0.1, port_value: PORT}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.MANAGER
                stat_prefix: http
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{match: {prefix: /}, direct_response: {status: 200}}]
                http_filters:
                  - name: envoy.filters.http.wasm
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
                      CONFIG
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
    - name: kiln
      load_assignment:
        cluster_name: kiln
        endpoints:
          - lb_endpoints:
              - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: KILN}}}
"""
FILTER = """
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "_initialize"))
  (func (export "malloc") (param i32) (result i32) i32.const 1024)
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) i32.const 1)
  (func (export "proxy_on_configure") (param i32 i32) (result i32) i32.const 1))
"""


def envoy_program() -> Path:
    [program] = Path(sys.prefix).glob("lib/python3*/site-packages/envoy/_bin/envoy")
    return program


@dataclass(frozen=True)
class Proxied:
    """Two daemons, and the address of the Envoy in front of them."""

    daemons: tuple[Daemon, Daemon]
    address: str

    def client(self) -> Client:
        return Client(self.address, timeout_s=30)

    def compiles(self) -> list[float]:
        return [
            daemon.metric("compiles_total", engine=ENGINE, outcome="ok") for daemon in self.daemons
        ]


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    installed_engines()
    folder = tmp_path_factory.mktemp("proxied")
    flags = ["--redis-url", "none", "--workers", "1", "--host-store-bytes", "0"]
    flags += ["--http-listen", "127.0.0.1:0"]
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(Daemon(state_with(folder / name, ENGINE), flags))
            for name in ("one", "two")
        )
        [port] = free_ports(1)
        path = folder / "envoy.yaml"
        path.write_text(_configuration(port, first, second))
        envoy = stack.enter_context(_running(envoy_program(), path))
        address = f"127.0.0.1:{port}"
        eventually(lambda: _answers(address), f"Envoy does not answer: {_end_of(path)}")
        yield Proxied((first, second), address)
        assert envoy.poll() is None


def test_what_callers_need_goes_through_and_nothing_else(proxied: Proxied) -> None:
    [module] = modules(1)
    with proxied.client() as client:
        assert client.compile(module, engine=ENGINE).bytes
        assert client.health()
        assert client.stats()
        with pytest.raises(WasmkilnError) as refused:
            client.compile(b"\0asm\1\0\0\0\xff", engine=ENGINE)
    assert refused.value.reason == "MODULE_INVALID"
    assert refused.value.metadata
    with grpc.insecure_channel(proxied.address) as channel, pytest.raises(grpc.RpcError) as unknown:
        AdminServiceStub(channel).Evict(admin_service_pb2.EvictRequest(), timeout=10)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_all_calls_about_a_module_go_to_one_daemon(proxied: Proxied) -> None:
    before = proxied.compiles()
    several = modules(24)
    for _ in range(2):
        with proxied.client() as client:
            for module in several:
                client.compile(module, engine=ENGINE)
    made = [after - old for after, old in zip(proxied.compiles(), before, strict=True)]
    assert sum(made) == len(several), "a module was compiled by both"
    assert min(made) > 0, "one daemon has all modules"


def test_artifacts_are_fetched_over_http(proxied: Proxied) -> None:
    """From the daemon that has them, by HTTP/1.1; nothing else is there."""
    several = modules(24)
    with proxied.client() as client:
        digests = [client.load(each, engine=ENGINE).sha256 for each in several]
    for digest, module in zip(digests, several, strict=True):
        assert fetched(proxied, f"/v1/modules/{digest}") == (200, module)
    assert fetched(proxied, f"/v1/modules/{'0' * 64}")[0] == 404
    assert fetched(proxied, "/metrics")[0] == 404


def test_no_limit_of_envoy_is_below_what_a_call_may_take() -> None:
    [manager] = [
        each["typed_config"]
        for each in yaml.safe_load(CONFIGURATION.read_text())["static_resources"]["listeners"][0][
            "filter_chains"
        ][0]["filters"]
        if each["name"].endswith("http_connection_manager")
    ]
    [route, *_] = manager["route_config"]["virtual_hosts"][0]["routes"]
    longest = route["route"]["max_stream_duration"]["grpc_timeout_header_max"]
    assert route["route"]["timeout"] == "0s"
    assert _seconds(manager["stream_idle_timeout"]) >= _seconds(longest) == 600


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def fetched(proxied: Proxied, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://{proxied.address}{path}", timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


def test_who_resets_its_calls_is_disconnected(proxied: Proxied) -> None:
    with Flood(proxied.address) as flood:
        flood.run(KINDS["resets"](flood), rate=50_000, seconds=5)
        assert flood.closed.wait(60), "Envoy goes on reading it"
    _assert_served(proxied)


@pytest.mark.parametrize("kind", ["pings", "settings"])
def test_frames_without_calls_hold_nobody_up(proxied: Proxied, kind: str) -> None:
    """Envoy answers them itself, and closes the connection only if the answers are not read."""
    with Flood(proxied.address) as flood:
        frames = KINDS[kind](flood)
        sending = {"rate": 50_000, "seconds": 5}
        sender = threading.Thread(target=flood.run, args=(frames,), kwargs=sending)
        sender.start()
        while sender.is_alive():
            _assert_served(proxied)
        sender.join()


def test_connections_of_strangers_are_bounded(proxied: Proxied) -> None:
    host, _, port = proxied.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        strangers = [
            stack.enter_context(contextlib.closing(socket.create_connection((host, int(port)))))
            for _ in range(2 * MOST_CONNECTIONS)
        ]
        eventually(
            lambda: sum(map(_is_closed, strangers)) >= MOST_CONNECTIONS, "all stay connected", 15
        )
    eventually(lambda: _answers(proxied.address), "the connections do not come back")


def test_a_daemon_that_ends_is_taken_over(proxied: Proxied) -> None:
    """It is the last test of the file: it ends a daemon."""
    several = modules(8)
    ends, stays = proxied.daemons
    ends.kill()
    with proxied.client() as client:
        eventually(lambda: _compiles_all(client, several), "calls go on to the daemon that ended")
    assert stays.metric("compiles_total", engine=ENGINE, outcome="ok") >= len(several)


def test_the_code_of_a_filter_is_fetched_from_a_daemon(tmp_path: Path) -> None:
    installed_engines()
    flags = ["--redis-url", "none", "--http-listen", "127.0.0.1:0"]
    with Daemon(state_with(tmp_path / "state", ENGINE), flags) as daemon:
        with daemon.client() as client:
            module = client.load(wasm.from_text(FILTER)).sha256
        page = (ROOT / "docs" / "how-to" / "http.md").read_text()
        [config] = re.findall(r"^```yaml\n(config:.*?)^```", page, re.MULTILINE | re.DOTALL)
        config = config.replace("MODULE", module).replace("kiln.example.org:8080", daemon.http)
        [port], path = free_ports(1), tmp_path / "envoy.yaml"
        text = (
            FETCHES.replace("MANAGER", MANAGER)
            .replace("PORT", str(port))
            .replace("KILN", daemon.http.rpartition(":")[2])
        )
        path.write_text(text.replace("CONFIG", config.replace("\n", "\n" + " " * 22)))
        with _running(envoy_program(), path):
            eventually(lambda: _passes(port), f"no request passes: {_end_of(path)}")
        line = json.loads(daemon.wait_for_log('"/v1/modules/{sha256}"'))
        assert (line["code"], line["module"]) == ("OK", module)


def _passes(port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10).status == 200)
    return False


def _assert_served(proxied: Proxied) -> None:
    [module] = modules(1)
    with proxied.client() as client:
        for _ in range(20):
            client.compile(module, engine=ENGINE, timeout_s=5)


def _configuration(port: int, first: Daemon, second: Daemon) -> str:
    """Return the configuration of deploy/ with addresses and a limit of this test.

    As its comment says for daemons that share nothing, 404 is asked of another one.
    """
    text = CONFIGURATION.read_text()
    for shipped, ours in (
        ("0.0.0.0", "127.0.0.1"),
        ("50050", str(port)),
        ("max_connections: 1000", f"max_connections: {MOST_CONNECTIONS}"),
        ("retriable_status_codes: [503]", "retriable_status_codes: [503, 404]"),
    ):
        assert shipped in text
        text = text.replace(shipped, ours)
    for line in re.findall(r"^ +- endpoint: .*$\n", text, re.MULTILINE):
        is_grpc = "50051" in line
        addresses = [each.address if is_grpc else each.http for each in (first, second)]
        ports = (each.rpartition(":")[2] for each in addresses)
        shipped = "50051" if is_grpc else "8080"
        text = text.replace(line, "".join(line.replace(shipped, each) for each in ports))
    return text


@contextlib.contextmanager
def _running(program: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(program), "-c", str(path), "--disable-hot-restart", "--concurrency", "1"]
    with path.with_suffix(".log").open("wb") as log:
        envoy = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield envoy
    finally:
        envoy.kill()
        envoy.wait()


def _end_of(path: Path) -> str:
    return path.with_suffix(".log").read_text(errors="replace")[-2000:]


def _answers(address: str) -> bool:
    with contextlib.suppress(WasmkilnError), Client(address, timeout_s=2, max_attempts=1) as client:
        return bool(client.health())
    return False


def _compiles_all(client: Client, several: list[bytes]) -> bool:
    with contextlib.suppress(WasmkilnError):
        return all(client.compile(each, engine=ENGINE).bytes for each in several)
    return False


def _is_closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
