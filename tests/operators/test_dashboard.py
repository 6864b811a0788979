"""Every query of the Grafana dashboard finds data in a Prometheus that scrapes a real daemon."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub

from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, Daemon, state_with
from tests.e2e.over_tls import TlsSite
from tests.e2e.programs import ROOT, installed_engines
from tests.operators.conftest import Needs
from tests.operators.prometheus import Prometheus, Target

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "wasmkiln.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES = {"$instance": ".+", "$__rate_interval": "5m"}
"""What Grafana puts in their places."""
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
MOST_PANELS = 20
"""Titles of rows included."""


def queries() -> Iterator[tuple[str, str]]:
    """Yield each query of the dashboard as Grafana sends it, with the title of its panel."""
    asked = [(panel["title"], each) for panel in PANELS for each in panel.get("targets", ())]
    asked += [(each["name"], each) for each in DASHBOARD["annotations"]["list"]]
    for title, target in asked:
        query = target["expr"]
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        assert "$" not in query, query
        yield title, query


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsSite:
    return TlsSite(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def prometheus(
    needs: Needs, tls: TlsSite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a daemon which compiled, hit, missed and refused."""
    needs("prometheus")
    installed_engines()
    folder = tmp_path_factory.mktemp("dashboard")
    pair = tls.server
    flags = ("--tls-cert-file", str(pair.cert_file), "--tls-key-file", str(pair.key_file))
    with Daemon(state_with(folder / "state", *TWO_ENGINES), flags) as daemon:
        address = daemon.admin_url.removeprefix("http://")
        target = Target("kiln-1", address, tls.authority.ca_file)
        with Prometheus(needs("prometheus"), folder / "prom", [target]) as running:
            running.some("wasmkiln_redis_up == 1")
            use(daemon, tls)
            running.wait_for_scrapes(3)
            yield running


def use(daemon: Daemon, tls: TlsSite) -> None:
    """Compile modules with each engine, ask for each again, and send what is no module."""
    modules = [wasm.many_functions(100, tag=tag) for tag in range(3)]
    with tls.channel(f"localhost:{daemon.address.rpartition(':')[2]}") as channel:
        stub = ModuleServiceStub(channel)
        for engine, module, _ in itertools.product(TWO_ENGINES, modules, range(3)):
            request = pb.CompileRequest(module=module, engine=engine)
            assert list(stub.Compile(request, timeout=120))
        with pytest.raises(grpc.RpcError):
            list(stub.Compile(pb.CompileRequest(module=b"no module"), timeout=120))


def test_each_query_finds_data(prometheus: Prometheus) -> None:
    for title, query in queries():
        if title == "Restarts":
            # It marks a start, and has nothing to mark as long as the daemon runs.
            assert prometheus.values(query) == []
            query = query.replace("> 0", ">= 0")
        found = prometheus.some(query)
        assert [value for _, value in found if math.isfinite(value)], (title, query)


@pytest.mark.parametrize(
    ("panel", "least", "most"),
    [
        ("Ready", 1, 1),
        ("Daemons", 1, 1),
        ("Hit ratio", 0.5, 0.8),
        ("Compile time, p99", 0.0001, 120),
        ("In order", 1, 1),
        ("Tiers that do not answer", 0, 0),
        ("Certificates expire in", 8 * 86_400, 10 * 86_400),
    ],
)
def test_a_panel_shows_what_happened(
    prometheus: Prometheus, panel: str, least: float, most: float
) -> None:
    for query in [query for title, query in queries() if title == panel]:
        for labels, value in prometheus.some(query):
            assert least <= value <= most, labels


def test_the_queries_of_the_documentation_find_data(prometheus: Prometheus) -> None:
    monitor = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    cells = re.findall(r"^\| .+\? \| (.+) \|$", monitor, re.MULTILINE)
    asked = [query.replace("\\|", "|") for cell in cells for query in re.findall("`(.+?)`", cell)]
    metrics = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    [block] = re.findall(r"^```\n(# hit.*?)^```", metrics, re.MULTILINE | re.DOTALL)
    asked += [line for line in block.splitlines() if not line.startswith("#")]
    assert len(asked) > 10
    for query in asked:
        assert prometheus.some(query)


def test_the_instances_to_choose_from_are_the_daemons(prometheus: Prometheus) -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    asked = variables["instance"]["query"]["query"]
    assert asked == "label_values(wasmkiln_build_info, instance)"
    found = prometheus.some("wasmkiln_build_info")
    assert [labels["instance"] for labels, _ in found] == ["kiln-1"]


def test_a_certificate_that_is_half_written(prometheus: Prometheus, tls: TlsSite) -> None:
    """The daemon goes on with the old one, and an alert watches this."""
    tls.server.cert_file.write_bytes(tls.server.cert[:100])
    assert prometheus.some('wasmkiln_last_reload_successful{what="files"} == 0')


def test_every_panel_says_what_it_shows_and_asks_the_chosen_source() -> None:
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers) <= MOST_PANELS
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == DATASOURCE
        for target in panel["targets"]:
            assert target["datasource"] == DATASOURCE
            assert 'instance=~"$instance"' in target["expr"], panel["title"]


def test_grafana_knows_every_field() -> None:
    """Those that its schema does not have would be lost on the way."""
    assert what_grafana_loses({**DASHBOARD, "titel": "wasmkiln"}) == ["/titel"]
    assert what_grafana_loses(DASHBOARD) == []


def what_grafana_loses(dashboard: Mapping[str, Any]) -> list[str]:
    """Return the fields that Grafana's schema does not have: they are lost on the way."""
    register_default_plugins()
    read = json.dumps(Dashboard.from_json(dict(dashboard)), cls=JSONEncoder)
    return list(lost(dashboard, json.loads(read), ""))


def lost(given: Any, read: Any, where: str) -> Iterator[str]:
    """Yield the places at which ``read`` is not what was ``given``, apart from defaults."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from lost(value, read.get(key), f"{where}/{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for number, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from lost(one, other, f"{where}/{number}")
    elif given != read:
        yield where


def test_no_panel_covers_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        grid = panel["gridPos"]
        columns = range(grid["x"], grid["x"] + grid["w"])
        assert columns.stop <= COLUMNS
        for place in itertools.product(columns, range(grid["y"], grid["y"] + grid["h"])):
            assert place not in taken, (panel["title"], taken.get(place))
            taken[place] = panel["title"]
