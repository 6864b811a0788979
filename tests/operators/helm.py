"""What Helm makes of the chart, and what the schemas of Kubernetes say of it.

The release is called "kiln", its namespace "prod".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "wasmkiln"
_INFORMATION = 1


class Rendered:
    """What Helm makes of the chart with some values."""

    def __init__(
        self, error: str, lint: list[str], notes: str = "", manifests: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.error = error
        """Why Helm refuses the values; empty if it does not."""
        self.lint = lint
        """Findings of `helm lint --strict`, apart from mere information."""
        self.invalid = [problem for each in manifests for problem in _problems(each)]
        """Manifests that the schemas of Kubernetes refuse, and why."""
        self.notes = notes
        self.manifests = manifests

    def one(self, kind: str, name: str = "kiln-wasmkiln") -> dict[str, Any]:
        """Return the manifest of a kind and a name."""
        [found] = [each for each in self.manifests if _is(each, kind, name)]
        return found

    def has(self, kind: str, name: str = "kiln-wasmkiln") -> bool:
        """Return whether there is a manifest of a kind and a name."""
        return any(_is(each, kind, name) for each in self.manifests)

    @property
    def pod(self) -> dict[str, Any]:
        """The template of the daemon's pods."""
        return dict(self.one("StatefulSet")["spec"]["template"])

    @property
    def container(self) -> dict[str, Any]:
        """The daemon's container."""
        [container] = self.pod["spec"]["containers"]
        return dict(container)


def _is(manifest: Mapping[str, Any], kind: str, name: str) -> bool:
    return bool(manifest["kind"] == kind and manifest["metadata"]["name"] == name)


def render(
    values: Mapping[str, Any] | None = None, chart: Path = CHART, *, is_upgrade: bool = False
) -> Rendered:
    """Lint and render the chart with ``values``, and validate what comes out."""
    return _render(json.dumps(values or {}), chart, is_upgrade=is_upgrade)


def render_file(name: str) -> Rendered:
    """The same with a file of the chart's folder ci/."""
    return render_text((CHART / "ci" / f"{name}-values.yaml").read_text())


def render_text(text: str) -> Rendered:
    """The same with values as YAML."""
    return _render(text, CHART)


@cache
def _render(text: str, chart: Path, *, is_upgrade: bool = False) -> Rendered:
    import helm_python  # it takes a second to load

    values = yaml.load(text, _Strict)
    report = helm_python.lint(str(chart), values, strict=True, namespace="prod")
    lint = [
        f"{each['path']}: {each['error']}"
        for each in report["messages"]
        if each["severity"] > _INFORMATION
    ]
    with helm_python.Chart.load(str(chart)) as loaded:
        try:
            files = loaded.render(values, name="kiln", namespace="prod", is_upgrade=is_upgrade)
        except helm_python.HelmError as error:
            return Rendered(str(error), lint)
    notes = files.pop("wasmkiln/templates/NOTES.txt", "")
    read = [each for text in files.values() for each in yaml.load_all(text, _Strict) if each]
    return Rendered("", lint, notes, read)


class _Strict(yaml.SafeLoader):  # type: ignore[misc]  # it has no types here
    """Reads YAML as kubectl does: a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is there twice."""
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"{sorted(twice)} twice, at {node.start_mark}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _problems(manifest: dict[str, Any]) -> Iterator[str]:
    """Say what the schemas of Kubernetes refuse; they know no resources of operators."""
    if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
        return
    import kubernetes_validate  # it takes a second to load

    # The chart's kubeVersion, and the newest that the package knows.
    for version in ("1.27", kubernetes_validate.latest_version()):
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(part) for part in error.path)
            yield f"{version}: {manifest['kind']}: {where}: {error.message}"
