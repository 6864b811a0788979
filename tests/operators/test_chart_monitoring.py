"""The chart's alerts and dashboard are those of deploy/, and fit what its ServiceMonitor makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.operators.alert_cases import promtool_tests
from tests.operators.conftest import Needs
from tests.operators.helm import CHART, ROOT, Rendered, render

ALERTS = ROOT / "deploy" / "prometheus-alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "wasmkiln.json"
BOTH = {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}
RENAMED = {**BOTH, "nameOverride": "kilns", "serviceMonitor": {"enabled": True}}
READ = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"


def test_the_alerts_and_the_dashboard_are_those_of_deploy() -> None:
    """`{{ $labels.instance }}` and its like stay for Prometheus."""
    plain, rendered = render(), render(BOTH)
    assert not plain.has("PrometheusRule")
    assert not plain.has("ConfigMap", "kiln-wasmkiln-dashboard")
    assert (rendered.error, rendered.lint, rendered.invalid) == ("", [], [])
    assert rendered.one("PrometheusRule")["spec"] == _read(ALERTS)
    found = rendered.one("ConfigMap", "kiln-wasmkiln-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["data"] == {"wasmkiln.json": DASHBOARD.read_text()}
    # And not in the repository twice.
    linked = {path.name: path.resolve() for path in (CHART / "files").iterdir()}
    assert linked == {"prometheus-alerts.yml": ALERTS, "dashboard.json": DASHBOARD}


def test_promtool_accepts_the_rules_of_another_job_and_each_alert_fires(
    needs: Needs, tmp_path: Path
) -> None:
    """Those of the job that deploy/ names are the same as there."""
    rules = tmp_path / "rules.yml"
    # YAML holds JSON.
    rules.write_text(json.dumps(render(RENAMED).one("PrometheusRule", "kiln-kilns")["spec"]))
    tests = tmp_path / "tests.yml"
    tests.write_text(promtool_tests(str(rules), job="kilns"))
    promtool = needs("prometheus").with_name("promtool")
    for words in (("check", "rules", "--lint-fatal", rules), ("test", "rules", tests)):
        done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_they_ask_for_the_job_that_the_service_monitor_makes() -> None:
    rendered = render(RENAMED)
    label = rendered.one("ServiceMonitor", "kiln-kilns")["spec"]["jobLabel"]
    job = rendered.one("Service", "kiln-kilns-ring")["metadata"]["labels"][label]
    rules = _rules(rendered, "kiln-kilns")
    [dashboard] = rendered.one("ConfigMap", "kiln-kilns-dashboard")["data"].values()
    queries = [each["expr"] for each in json.loads(dashboard)["annotations"]["list"]]
    asked = [query for query in (*(each["expr"] for each in rules), *queries) if "job=" in query]
    assert len(asked) == 3
    assert all(f'job="{job}"' in query for query in asked)


def test_a_runbook_is_a_page_of_the_address_that_is_given() -> None:
    page = "https://docs.example.org/reference/alerts.html"
    given = {"prometheusRule": {"enabled": True, "runbookUrl": page, "labels": {"release": "x"}}}
    rendered = render(given)
    for rule in _rules(rendered, "kiln-wasmkiln"):
        assert rule["annotations"]["runbook_url"] == f"{page}#{rule['alert'].lower()}"
    assert rendered.one("PrometheusRule")["metadata"]["labels"]["release"] == "x"
    refused = render({"prometheusRule": {"enabled": True, "runbookUrl": "docs.example.org"}})
    assert "/prometheusRule/runbookUrl" in refused.error


def test_a_checkout_that_lost_the_links_says_so(tmp_path: Path) -> None:
    """Git without core.symlinks writes the path of a link into a file."""
    lost = shutil.copytree(CHART, tmp_path / "wasmkiln", symlinks=True)
    for link in (lost / "files").iterdir():
        path = str(link.readlink())
        link.unlink()
        link.write_text(path)
    assert render(chart=lost).error == ""
    for part, file in (
        ("prometheusRule", "prometheus-alerts.yml"),
        ("dashboard", "dashboard.json"),
    ):
        said = render({part: {"enabled": True}}, chart=lost).error
        assert f"cannot read files/{file} of the chart: it is a symbolic link" in said
        assert "git config core.symlinks true" in said


def _rules(rendered: Rendered, name: str) -> list[dict[str, Any]]:
    [group] = rendered.one("PrometheusRule", name)["spec"]["groups"]
    return list(group["rules"])


def _read(file: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=file.read_text(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)
