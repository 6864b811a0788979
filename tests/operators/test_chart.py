"""The Helm chart: Helm renders it, Kubernetes' schemas take it, and its parts fit each other.

Its alerts and dashboard are those of deploy/, and fit what its ServiceMonitor makes.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.release import chart
from tests.e2e.releases import COMMITS
from tests.operators.helm import CHART, ROOT, Rendered, render, render_file, render_text

FILES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*.yaml"))

RELEASED = ("fleet", "node", "tls")  # The files that 0.6.0 had.
ALERTS = ROOT / "deploy" / "prometheus-alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "wasmkiln.json"
BOTH = {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}
READS = {"object_store_mode": "read-only"}
RENAMED = {**BOTH, "nameOverride": "kilns", "serviceMonitor": {"enabled": True}}


@pytest.fixture(params=["defaults", *FILES])
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """The chart with the default values, then with those of each file of ci/."""
    return render() if request.param == "defaults" else render_file(request.param)


def test_helm_and_kubernetes_take_it(rendered: Rendered) -> None:
    assert rendered.error == ""
    assert rendered.lint == []
    assert rendered.invalid == []


def test_what_is_named_is_there(rendered: Rendered) -> None:
    """Volumes, ports, labels and names that one manifest expects of another."""
    spec, labels = rendered.pod["spec"], rendered.pod["metadata"]["labels"]
    claims = rendered.one("StatefulSet")["spec"].get("volumeClaimTemplates", ())
    volumes = [each["name"] for each in spec["volumes"]]
    volumes += [each["metadata"]["name"] for each in claims]
    assert len(set(volumes)) == len(volumes)
    mounts = [each for part in _containers(spec) for each in part["volumeMounts"]]
    assert {each["name"] for each in mounts} == set(volumes)
    assert spec["serviceAccountName"] in ("default", "kiln-wasmkiln")
    assert rendered.has("ServiceAccount")
    ports = {each["name"]: each["containerPort"] for each in rendered.container["ports"]}
    selectors = [
        rendered.one("StatefulSet")["spec"]["selector"]["matchLabels"],
        *(each["spec"]["selector"] for each in _of(rendered, "Service")),
        *(each["spec"]["selector"]["matchLabels"] for each in _of(rendered, "PodDisruptionBudget")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in _of(rendered, "NetworkPolicy")),
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    for service in _of(rendered, "Service"):
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= set(ports)
    for policy in _of(rendered, "NetworkPolicy"):
        allowed = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
        assert sorted(allowed) == sorted(ports)
    for monitor in _of(rendered, "ServiceMonitor"):
        ring = rendered.one("Service", "kiln-wasmkiln-ring")
        wanted = monitor["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= ring["metadata"]["labels"].items()
        # The plain service does not fit too: every pod would be scraped twice.
        assert not wanted.items() <= rendered.one("Service")["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] in ports
    assert rendered.one("StatefulSet")["spec"]["serviceName"] == "kiln-wasmkiln-ring"
    assert rendered.one("Service", "kiln-wasmkiln-ring")["spec"]["clusterIP"] == "None"


def test_it_runs_without_any_privilege(rendered: Rendered) -> None:
    """As the restricted level of Kubernetes' pod security standards asks, and a bit more."""
    spec = rendered.pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in _containers(spec):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_probes_speak_what_the_daemon_speaks() -> None:
    """The kubelet's gRPC probes have no TLS."""
    plain, tls = render().container, render_file("tls").container
    for probe in ("startupProbe", "readinessProbe"):
        assert plain[probe]["grpc"] == {"port": 50051, "service": ""}
        assert tls[probe]["httpGet"] == {"path": "/readyz", "port": "admin", "scheme": "HTTPS"}
    assert plain["livenessProbe"]["httpGet"]["scheme"] == "HTTP"
    assert tls["livenessProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_secrets_stay_out_of_files_and_arguments() -> None:
    fleet = render_file("fleet")
    variables = {each["name"]: each for each in fleet.container["env"]}
    key = variables["WASMKILN_SIGNING_KEY"]
    assert key["valueFrom"] == {"secretKeyRef": {"name": "kiln-key", "key": "key"}}
    [password] = [each for each in fleet.pod["spec"]["volumes"] if each["name"] == "redis-password"]
    assert password["secret"] == {"secretName": "redis", "defaultMode": 0o440}
    by_url = render({"redis": {"existingSecret": "redis"}})
    variables = {each["name"]: each for each in by_url.container["env"]}
    assert variables["WASMKILN_REDIS_URL"]["valueFrom"]["secretKeyRef"]["key"] == "url"


@pytest.mark.parametrize("tls", [{}, {"tls": {"existingSecret": "kiln-tls"}}], ids=["plain", "tls"])
def test_all_daemons_read_the_tokens_of_one_secret(tls: Mapping[str, Any]) -> None:
    """With or without TLS they are identities enough; without a policy, probes need none."""
    tokens = {"existingSecret": "kiln-tokens", "key": "all.json"}
    rendered = render({"replicas": 3, "tokens": tokens, **tls})
    assert (rendered.error, rendered.lint, rendered.invalid) == ("", [], [])
    [mount] = [each for each in rendered.container["volumeMounts"] if each["name"] == "tokens"]
    assert mount["readOnly"] is True
    [volume] = [each for each in rendered.pod["spec"]["volumes"] if each["name"] == "tokens"]
    assert volume["secret"] == {"secretName": "kiln-tokens", "defaultMode": 0o440}
    config = rendered.one("ConfigMap")["data"]
    assert f'tokens_file = "{mount["mountPath"]}/all.json"\n' in config["wasmkilnd.toml"]
    assert "policy.toml" not in config
    assert "do everything" not in rendered.notes


def test_a_policy_leaves_health_to_the_probes() -> None:
    rule = '[[rule]]\nidentity = "jwt:*"\n'
    for given, written in (
        (rule, f"open_health = true\n{rule}"),
        (f"open_health = false\n{rule}", f"open_health = false\n{rule}"),
    ):
        assert render({"policy": given}).one("ConfigMap")["data"]["policy.toml"] == written


@pytest.mark.parametrize("tls", [{}, {"tls": {"existingSecret": "kiln-tls"}}], ids=["plain", "tls"])
def test_artifacts_are_reached_over_http_where_that_is_on(tls: Mapping[str, Any]) -> None:
    other = {"team": "edge"}
    on = {
        "http": {"enabled": True},
        "ports": {"http": 8443},
        "service": {"httpPort": 80},
        "networkPolicy": {"httpFrom": [{"namespaceSelector": {"matchLabels": other}}]},
        "tokens": {"existingSecret": "kiln-tokens"},
    }
    rendered = render({**on, **tls})
    assert (rendered.error, rendered.lint, rendered.invalid) == ("", [], [])
    config = rendered.one("ConfigMap")["data"]["wasmkilnd.toml"]
    assert 'http_listen = "0.0.0.0:8443"\n' in config
    assert {"name": "http", "containerPort": 8443} in rendered.container["ports"]
    [port] = [each for each in rendered.one("Service")["spec"]["ports"] if each["name"] == "http"]
    scheme = "https" if tls else "http"
    assert port == {"name": "http", "port": 80, "targetPort": "http", "appProtocol": scheme}
    ring = rendered.one("Service", "kiln-wasmkiln-ring")["spec"]["ports"]
    assert {"name": "http", "port": 8443, "targetPort": "http"} in ring
    rules = {
        rule["ports"][0]["port"]: rule["from"]
        for rule in rendered.one("NetworkPolicy")["spec"]["ingress"]
    }
    assert rules["http"] == [{"namespaceSelector": {"matchLabels": other}}]
    assert rules["grpc"] == [{"podSelector": {}}]
    assert f"artifacts  {scheme}://kiln-wasmkiln.prod.svc:80/v1/" in rendered.notes
    assert "http_listen" not in render().one("ConfigMap")["data"]["wasmkilnd.toml"]


def test_a_bucket_has_its_credentials_from_a_secret_or_the_service_account() -> None:
    by_secret = render({"objectStore": {"url": "gs://builds/kiln", "existingSecret": "bucket"}})
    assert (by_secret.error, by_secret.lint, by_secret.invalid) == ("", [], [])
    assert by_secret.container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    by_identity = render_file("bucket")
    assert "envFrom" not in by_identity.container
    variables = {each["name"]: each.get("value") for each in by_identity.container["env"]}
    assert variables["AWS_REGION"] == "eu-central-1"
    [role] = by_identity.one("ServiceAccount")["metadata"]["annotations"].values()
    assert role == "arn:aws:iam::111122223333:role/kiln"
    assert by_identity.pod["spec"]["serviceAccountName"] == "kiln-wasmkiln"
    for rendered, url in ((by_secret, "gs://builds/kiln"), (by_identity, "s3://builds/kiln")):
        config = rendered.one("ConfigMap")["data"]["wasmkilnd.toml"]
        assert f'object_store_url = "{url}"\n' in config
        assert "share nothing" not in rendered.notes


def test_numbers_stay_whole() -> None:
    """Helm reads them as floating-point numbers, and would write 2.68435456e+08."""
    text = render_file("fleet").one("ConfigMap")["data"]["wasmkilnd.toml"]
    assert "memory_bytes = 268435456\n" in text
    assert "redis_timeout_s = 2.5\n" in text
    assert 'engine_alias = { "wasmtime" = "wasmtime-50.0.1" }\n' in text
    assert 'redis_url = "redis://kiln@127.0.0.1:6379/0"\n' in text
    # A changed setting starts the daemons again.
    sums = {
        render({"settings": {"memory_bytes": memory}}).pod["metadata"]["annotations"][
            "checksum/config"
        ]
        for memory in ("1GiB", "2GiB")
    }
    assert len(sums) == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"replicas": 2, "redis": {"url": "redis://r:6379"}},
            "cannot share one Redis between 2 daemons that sign with keys of their own",
        ),
        (
            {"replicas": 2, "objectStore": {"url": "s3://builds/kiln"}},
            "cannot share one object store between 2 daemons that sign with keys of their own",
        ),
        (
            {"redis": {"url": "redis://r:6379", "existingSecret": "r"}},
            "cannot use two Redis URLs",
        ),
        (
            {"trustedKeys": {"existingSecret": "a", "existingConfigMap": "b"}},
            "cannot mount two sources of trusted keys",
        ),
        ({"tls": {"existingSecret": "a"}}, "cannot tell callers apart: set tls.clientCASecret"),
        ({"tls": {"clientCASecret": "a"}}, "cannot ask callers for certificates without TLS"),
        ({"ports": {"grpc": 9464}}, "ports.grpc and ports.admin are both 9464"),
        (
            {"http": {"enabled": True}, "ports": {"http": 50051}},
            "ports.grpc and ports.http are both 50051",
        ),
        ({"objectStore": {"existingSecret": "b"}}, "set objectStore.url too"),
        ({"settings": {"http_listen": "[::]:1"}}, "cannot set settings.http_listen"),
        ({"settings": {"object_store_url": "s3://b"}}, "cannot set settings.object_store_url"),
        ({"objectStore": {"url": "s3://key:secret@b"}}, "/objectStore/url"),
        ({"settings": {"tokens_file": "/t"}}, "cannot set settings.tokens_file"),
        ({"settings": {"listen": "[::]:1"}}, "cannot set settings.listen: the chart decides it"),
        # The schema of the values.
        ({"replica": 3}, "replica"),
        ({"replicas": -1}, "/replicas"),
        ({"redis": {"url": "redis://user:secret@r:6379"}}, "/redis/url"),
        ({"hostStore": {"hostPath": "relative"}}, "/hostStore/hostPath"),
        ({"settings": {"memroy_bytes": "1GiB"}}, "memroy_bytes"),
        ({"ports": {"grpc": 80}}, "/ports/grpc"),
    ],
)
def test_values_that_cannot_work_are_refused(values: Mapping[str, Any], words: str) -> None:
    assert words in re.sub(r"\s+", " ", render(values).error)


def test_an_upgrade_of_several_daemons_names_their_default_engine() -> None:
    """A new daemon would choose wasmtime where those that are left of 0.6.0 chose wasmer."""
    refused = "cannot upgrade several daemons without settings.default_engine"
    chosen = {"replicas": 2, "settings": {"default_engine": "wasmer"}}
    assert refused in render({"replicas": 2}, is_upgrade=True).error
    assert not render(chosen, is_upgrade=True).error
    assert not render({"replicas": 2}).error
    assert not render(is_upgrade=True).error


@pytest.mark.parametrize(
    ("values", "said", "not_said"),
    [
        ({}, "TLS is off", "share nothing"),
        ({"replicas": 2}, "The daemons share nothing: set redis.url", "two Redis"),
        (
            {"replicas": 2, "objectStore": {"url": "s3://b"}, "settings": READS},
            "Each daemon signs with a key of its own",
            "share nothing",
        ),
        ({"hostStore": {"hostPath": "/srv/k"}}, "install -d -o 10001 -g 10001 -m 0750 /srv/k", "@"),
        (
            {"tls": {"existingSecret": "t", "allowAnonymous": True}},
            "https://kiln-wasmkiln-ring.prod.svc:9464",
            "TLS is",
        ),
    ],
)
def test_the_notes_say_what_is_left_to_do(
    values: Mapping[str, Any], said: str, not_said: str
) -> None:
    notes = render(values).notes
    assert said in notes
    assert not_said not in notes


def test_every_value_is_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    written = re.findall(r"^(\w+):", (CHART / "values.yaml").read_text(), re.MULTILINE)
    assert sorted({*written, "global"}) == sorted(schema["properties"])


@pytest.mark.parametrize("file", ["values", *(f"ci/{name}-values" for name in RELEASED)])
def test_values_of_the_last_release_work_but_for_settings_that_are_named(file: str) -> None:
    text = _released(f"{file}.yaml")
    settings = re.search(r"^settings:\n((?:  .*\n)+)", text, re.MULTILINE)
    known = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]
    for name in re.findall(r"^  (\w+):", settings[1] if settings else "", re.MULTILINE):
        if name not in known["propertyNames"]["enum"]:
            assert f"invalid propertyName '{name}'" in render_text(text).error
            text = re.sub(rf"(?m)^  {name}:.*\n", "", text)
    rendered = render_text(text)
    assert (rendered.error, rendered.lint, rendered.invalid) == ("", [], [])


def _released(file: str) -> str:
    """Return a file of the chart of 0.6.0; skip where the history does not have it."""
    show = ("git", "show", f"{COMMITS['0.6.0']}:deploy/helm/wasmkiln/{file}")
    done = subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this checkout does not have the commit of 0.6.0")
    return done.stdout


def test_the_values_of_the_documentation_work() -> None:
    page = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    for example in examples:
        rendered = render_text(example)
        assert (rendered.error, rendered.lint, rendered.invalid) == ("", [], [])


def test_the_archive_of_a_release_is_the_same_chart(tmp_path: Path) -> None:
    archive = tmp_path / "wasmkiln-chart.tgz"
    archive.write_bytes(chart())
    values = {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}
    packed = render(values, chart=archive)
    assert packed.error == ""
    assert packed.manifests == render(values).manifests
    with tarfile.open(archive) as files:
        assert not [name for name in files.getnames() if "/ci/" in name]


def test_long_names_fit_a_label_of_dns() -> None:
    rendered = render({"fullnameOverride": "k" * 80})
    assert {len(each["metadata"]["name"]) for each in _of(rendered, "Service")} == {58, 63}


def test_the_alerts_and_the_dashboard_are_those_of_deploy() -> None:
    """`{{ $labels.instance }}` and its like stay for Prometheus."""
    plain, rendered = render(), render(BOTH)
    assert not plain.has("PrometheusRule")
    assert not plain.has("ConfigMap", "kiln-wasmkiln-dashboard")
    assert (rendered.error, rendered.lint, rendered.invalid) == ("", [], [])
    assert rendered.one("PrometheusRule")["spec"] == yaml.safe_load(ALERTS.read_text())
    found = rendered.one("ConfigMap", "kiln-wasmkiln-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["data"] == {"wasmkiln.json": DASHBOARD.read_text()}
    # And not in the repository twice.
    linked = {path.name: path.resolve() for path in (CHART / "files").iterdir()}
    assert linked == {"prometheus-alerts.yml": ALERTS, "dashboard.json": DASHBOARD}


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
    page = "https://docs.example.org/how-to/troubleshoot.html"
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


def _containers(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def _of(rendered: Rendered, kind: str) -> Iterator[dict[str, Any]]:
    return (each for each in rendered.manifests if each["kind"] == kind)
