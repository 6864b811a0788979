"""The alerts: each by promtool after its time, and some by what really happens to a daemon.

What each watches is there before it happens: tests/unit/telemetry/test_metrics.py.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from wasmkiln import WasmkilnError

from tests.e2e import hostile_engine, wasm
from tests.e2e.callers import (
    ENGINE,
)
from tests.e2e.daemon import Daemon, is_ready, state_with
from tests.e2e.processes import eventually, send, workers_of
from tests.e2e.programs import ROOT, installed_engines
from tests.operators.alert_cases import ALERTS, promtool_tests
from tests.operators.conftest import Needs
from tests.operators.prometheus import RULES, Prometheus, Target, at_once
from tests.servers.redis_server import binary_of, redis_server

BROKEN_ENGINE = "wasmtime-0.0.2"
HOSTILE_ENGINE = "wasmtime-0.0.1"


@dataclass(frozen=True)
class Site:
    """A daemon, what it depends on, and the Prometheus that scrapes it."""

    daemon: Daemon
    """It has no host store that works, and serves an engine that is not confined."""
    prometheus: Prometheus
    config: Path


@pytest.fixture(scope="module")
def site(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    needs("prometheus")
    installed_engines()
    folder = tmp_path_factory.mktemp("watched")
    state = state_with(folder / "state", ENGINE)
    (state / "engines" / BROKEN_ENGINE).mkdir()  # Nothing is in it.
    hostile_engine.environment(state / "engines", ["seccomp"])
    config = folder / "wasmkiln.toml"
    config.write_text('log_level = "info"\n')
    flags = ["--config", str(config), "--isolation", "best-effort"]
    flags += ["--host-store-dir", str(config / "store"), "--workers", "1"]
    flags += ["--compile-memory-bytes", "300MiB"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis_server(binary_of("valkey"), folder / "server"))
        environ = {"WASMKILN_REDIS_URL": server.url}
        daemon = stack.enter_context(Daemon(state, flags, environ))
        target = Target("plain", daemon.admin_url.removeprefix("http://"))
        rules = at_once(RULES.read_text())
        prometheus = stack.enter_context(
            Prometheus(needs("prometheus"), folder / "prom", [target], rules)
        )
        prometheus.wait_for_scrapes()
        yield Site(daemon, prometheus, config)


def test_each_alert_fires_after_its_time_and_not_before(needs: Needs, tmp_path: Path) -> None:
    file = tmp_path / "tests.yml"
    file.write_text(promtool_tests(str(RULES)))
    assert "SUCCESS" in promtool(needs, "test", "rules", str(file))


def test_promtool_accepts_the_metrics_of_a_daemon(needs: Needs, site: Site) -> None:
    with urllib.request.urlopen(f"{site.daemon.admin_url}/metrics", timeout=30) as page:
        promtool(needs, "check", "metrics", given=page.read().decode())


def test_what_is_wrong_from_the_start_fires_and_nothing_else(site: Site) -> None:
    site.prometheus.wait_for_scrapes()
    # A busy machine may not answer a scrape within its second.
    fired = site.prometheus.fired()
    assert fired.keys() - {"WasmkilnDown"} == {
        *("WasmkilnEngineNotServed", "WasmkilnNotConfined", "WasmkilnTierDown"),
        "WasmkilnEngineVulnerable",
    }
    assert [each["engine"] for each in fired["WasmkilnEngineNotServed"]] == [BROKEN_ENGINE]
    for alert in ("WasmkilnNotConfined", "WasmkilnEngineVulnerable"):
        assert [each["engine"] for each in fired[alert]] == [HOSTILE_ENGINE]
    assert [each["tier"] for each in fired["WasmkilnTierDown"]] == ["host_store"]


def test_a_module_beyond_the_limit_and_its_quarantine(site: Site) -> None:
    with site.daemon.client(max_attempts=1) as client:
        for reason in ("COMPILE_MEMORY_LIMIT", "MODULE_QUARANTINED"):
            with pytest.raises(WasmkilnError) as failure:
                client.compile(wasm.nested_blocks(1_000_000), engine=ENGINE)
            assert failure.value.reason == reason
    outcome = {"engine": ENGINE, "outcome": "compile_memory_limit"}
    assert site.daemon.metric("compiles_total", **outcome) == 1
    assert site.daemon.metric("quarantine_refused_total") == 1


def test_a_worker_that_dies(site: Site) -> None:
    def counted(name: str) -> float:
        return site.daemon.metric(name, engine=ENGINE)

    eventually(lambda: counted("workers") == 1, "there is no worker")
    before = counted("workers_replaced_total")
    send(signal.SIGKILL, *workers_of(site.daemon.pid))
    eventually(lambda: counted("workers_replaced_total") > before, "the worker was not replaced")


def test_a_reload_that_fails(site: Site) -> None:
    site.config.write_text('log_level = "loud"\n')
    site.daemon.process.send_signal(signal.SIGHUP)
    site.prometheus.wait_for("WasmkilnReloadFailed", instance="plain", what="settings")
    site.config.write_text('log_level = "info"\n')
    site.daemon.process.send_signal(signal.SIGHUP)
    eventually(
        lambda: site.daemon.metric("last_reload_successful", what="settings") == 1,
        "the mended configuration does not count",
    )


def test_an_engine_without_workers_and_a_daemon_that_ends(site: Site) -> None:
    for engine in (ENGINE, HOSTILE_ENGINE):
        (site.daemon.state_dir / "engines" / engine).rename(site.config.with_name(engine))
    send(signal.SIGKILL, *workers_of(site.daemon.pid))
    eventually(lambda: not is_ready(site.daemon), "it is ready without a worker")
    site.prometheus.wait_for("WasmkilnWorkersMissing", instance="plain", engine=ENGINE)
    site.prometheus.wait_for("WasmkilnNotReady", instance="plain")
    site.daemon.kill()
    site.prometheus.some('up{instance="plain"} == 0')
    site.prometheus.wait_for("WasmkilnDown", instance="plain")


def promtool(needs: Needs, *words: str, given: str = "") -> str:
    """Run promtool; return what it prints. It must succeed."""
    program = needs("prometheus").with_name("promtool")
    done = subprocess.run(
        [str(program), *words], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_page_on_monitoring_is_right(needs: Needs, tmp_path: Path) -> None:
    """Its configuration loads the rules, and its command makes links of the runbooks."""
    page = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    (tmp_path / RULES.name).write_text(RULES.read_text())
    [configuration] = fenced(page, "yaml")
    (tmp_path / "prometheus.yml").write_text(configuration)
    found = promtool(needs, "check", "config", str(tmp_path / "prometheus.yml"))
    assert f"{len(ALERTS)} rules found" in found
    for commands in fenced(page, "sh"):
        subprocess.run(commands, shell=True, cwd=tmp_path, check=True)
    links = re.findall(r"runbook_url: (.+)", (tmp_path / "alerts.yml").read_text())
    assert len(links) == len(ALERTS)
    assert "https://docs.example.org/how-to/troubleshoot.html#wasmkilndown" in links
    promtool(needs, "check", "rules", str(tmp_path / "alerts.yml"))


def fenced(page: str, language: str) -> list[str]:
    """Return the blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
